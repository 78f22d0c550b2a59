"""Sampling: our loop and vLLM beside transformers.generate, and a plain forward pass as the measure.

Samples begin with the start token alone, pure sampling. The forward pass takes the same batch, one token
a row, and keeps nothing: no way of sampling token by token with these kernels is faster.
"""

from __future__ import annotations

import time

import common

from cfutils.precision import bf16

SIZE = {"smollm2": (64, 96), "tiny": (512, 96)}
"""Samples in a batch, and the cap on their length."""
ARMS = ("forward", "generate", "ours", "vllm")


def turn(*, arm: str, base: str, dtype: str, number: int) -> dict:
    """Draw one batch, after a small one that is not timed."""
    n, length = SIZE[base]
    lab, folder = common.opened(base, chunk=n, dtype=dtype)
    import torch

    from cfutils import models
    from cfutils.engines import Request, TransformersEngine, VllmEngine

    tokenizer = models.load_tokenizer(folder)
    start = models.start_token(tokenizer, lab.profile.start_token)
    stop = models.end_tokens(tokenizer, start)
    requests = [Request((start,), 1000 * number + i) for i in range(n)]
    if arm in ("forward", "generate"):
        model = models.load(folder, lab.profile)
        ids = torch.full((n, 1), start)
    if arm == "forward":
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)
            clock = time.perf_counter()
            for _ in range(32):
                model(input_ids=ids, use_cache=False)
        return {"tokens_per_s": 32 * n / (time.perf_counter() - clock), "logprob": None}
    if arm == "generate":
        torch.manual_seed(number)

        def draw(tokens: int) -> tuple[int, float | None]:
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0,
                temperature=1.0, max_new_tokens=tokens, eos_token_id=list(stop), pad_token_id=stop[0],
            )  # fmt: skip
            total = 0
            for row in out[:, 1:].tolist():
                total += next((i + 1 for i, token in enumerate(row) if token in stop), len(row))
            return total, None

        draw(2)
        clock = time.perf_counter()
        total, logprob = draw(length)
        seconds = time.perf_counter() - clock
        return {"tokens_per_s": total / seconds, "logprob": logprob, "peak_mb": common.peak_mb()}
    engine = TransformersEngine(folder, lab.profile)
    if arm == "vllm":
        engine = VllmEngine(folder, lab.profile, max_length=length + 1)
    clock = time.perf_counter()
    engine.draw(requests, temperature=1.0, max_tokens=2, stop=stop)
    middle = time.perf_counter()
    drawn = engine.draw(requests, temperature=1.0, max_tokens=length, stop=stop)
    seconds = time.perf_counter() - middle
    engine.__exit__()
    total = sum(len(c.token_ids) for c in drawn)
    return {
        "tokens_per_s": total / seconds,
        "logprob": sum(sum(c.logprobs) for c in drawn) / total,
        "start_s": middle - clock,
        "peak_mb": common.peak_mb(),
    }


if __name__ == "__main__":
    dtypes = ("float32", "bfloat16") if bf16()[0] else ("float32",)
    settings = [("smollm2", dtype) for dtype in dtypes] + [("tiny", "float32")]
    common.main(__file__, turn, [
        {"arm": arm, "base": base, "dtype": dtype} for base, dtype in settings for arm in ARMS
    ])  # fmt: skip
