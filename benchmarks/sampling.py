"""Sampling speed: vLLM beside transformers.generate and our transformers engine, in one run.

    .venv/bin/python benchmarks/sampling.py --samples 64 --tokens 64

Same base, dtype, start token, number of samples and machine; the engines take turns, so that a drift of
the machine's speed meets all of them. Prints tokens per second, ratios, and the mean log-probability per
token of each engine's samples, which must agree within standard errors: all draw from one law.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from cfutils import models
from cfutils.engines import Completion, Request, TransformersEngine, VllmEngine
from cfutils.lab import Lab


class Generate:
    """transformers.generate, the peer: pure sampling, log-probabilities by a forward pass afterwards."""

    def __init__(self, folder, profile) -> None:
        self.model = models.load(folder, profile)

    def draw(self, requests, *, temperature, max_tokens, stop) -> list[Completion]:
        """Draw as the library does out of the box, but for top-k, which must be off."""
        import torch

        torch.manual_seed(requests[0].seed)
        prompt = torch.tensor([r.prompt for r in requests])
        out = self.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=True, top_k=0, top_p=1.0,
            temperature=temperature, max_new_tokens=max_tokens, eos_token_id=list(stop),
            pad_token_id=stop[0],
        )  # fmt: skip
        rows = []
        for ids in out[:, prompt.shape[1] :].tolist():
            end = next((i + 1 for i, token in enumerate(ids) if token in stop), len(ids))
            rows.append(Completion(ids[:end], [], "stop" if ids[end - 1] in stop else "length"))
        return rows

    def logprobs(self, requests, drawn) -> list[float]:
        """Sum of log p of each completion, by a forward pass."""
        import torch

        sums = []
        with torch.inference_mode():
            for request, completion in zip(requests, drawn, strict=True):
                ids = torch.tensor([[*request.prompt, *completion.token_ids]])
                rows = self.model(ids).logits[0, :-1].log_softmax(-1)
                chosen = rows.gather(1, ids[0, 1:, None])[len(request.prompt) - 1 :, 0]
                sums.append(chosen.sum().item())
        return sums


def mean_logprob(sums: list[float], lengths: list[int]) -> tuple[float, float]:
    """Mean log-probability per token and its standard error, samples taken as independent."""
    s, n = np.array(sums), np.array(lengths, float)
    mean = s.sum() / n.sum()
    return mean, (s - mean * n).std(ddof=1) / n.mean() / np.sqrt(len(s))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="smollm2")
    parser.add_argument("--samples", type=int, default=64, help="samples in a batch")
    parser.add_argument("--tokens", type=int, default=64, help="cap on a sample's length")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each engine")
    args = parser.parse_args()

    lab = Lab(args.profile, chunk=args.samples)
    folder = models.folder(lab.ensure(lab.steps.base))
    tokenizer = models.load_tokenizer(folder)
    start = models.start_token(tokenizer, lab.profile.start_token)
    stop = models.end_tokens(tokenizer, start)
    engines = {
        "vllm": VllmEngine(folder, lab.profile, max_length=args.tokens + 1),
        "transformers.generate": Generate(folder, lab.profile),
        "transformers engine": TransformersEngine(folder, lab.profile),
    }
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    sums: dict[str, list[float]] = {name: [] for name in engines}
    lengths: dict[str, list[int]] = {name: [] for name in engines}
    began = time.perf_counter()
    engines["vllm"].draw([Request((start,), 0)], temperature=1.0, max_tokens=2, stop=stop)
    print(f"vLLM start-up {time.perf_counter() - began:.0f} s")
    for turn in range(args.rounds):
        for number, (name, engine) in enumerate(engines.items()):
            first = (turn * len(engines) + number) * args.samples  # different samples everywhere
            requests = [Request((start,), first + i) for i in range(args.samples)]
            began = time.perf_counter()
            drawn = engine.draw(requests, temperature=1.0, max_tokens=args.tokens, stop=stop)
            seconds = time.perf_counter() - began
            count = [len(c.token_ids) for c in drawn]
            speeds[name].append(sum(count) / seconds)
            lengths[name] += count
            if isinstance(engine, Generate):
                sums[name] += engine.logprobs(requests, drawn)
            else:
                sums[name] += [sum(c.logprobs) for c in drawn]
    engines["vllm"].__exit__()
    print(f"\n{'engine':24}{'tokens/s':>10}{'min':>8}{'max':>8}{'log p/token':>14}{'stderr':>9}")
    for name, values in speeds.items():
        mean, error = mean_logprob(sums[name], lengths[name])
        print(f"{name:24}{statistics.median(values):10.0f}{min(values):8.0f}{max(values):8.0f}"
              f"{mean:14.4f}{error:9.4f}")  # fmt: skip
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    for name in list(engines)[1:]:
        a, ea = mean_logprob(sums["vllm"], lengths["vllm"])
        b, eb = mean_logprob(sums[name], lengths[name])
        print(f"vllm / {name}: {medians['vllm'] / medians[name]:.2f}x in speed; log p differs by "
              f"{abs(a - b):.4f}, {abs(a - b) / np.hypot(ea, eb):.1f} standard errors")  # fmt: skip


if __name__ == "__main__":
    main()
