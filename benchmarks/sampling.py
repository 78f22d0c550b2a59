"""Sampling: both engines beside transformers.generate, and a plain forward pass as the upper bound.

Prompts are the start token alone, without top-k or top-p. The forward pass takes the same batch, one token
per row, and keeps nothing: sampling token by token with the same kernels cannot be faster.
"""

from __future__ import annotations

import time

import common

from cfutils.models import tokenizers
from cfutils.models.precision import bf16

SIZE = {"smollm2": (64, 96), "tiny": (512, 96)}
"""Samples in a batch, and the cap on their length."""
ARMS = ("forward", "generate", "ours", "vllm")


def turn(*, arm: str, base: str, dtype: str, number: int) -> dict:
    """Sample one batch, after a short one that is not timed."""
    n, length = SIZE[base]
    lab, folder = common.opened(base, chunk=n, dtype=dtype)
    import torch

    from cfutils.models import loading
    from cfutils.models.generation.sampling import open_engine
    from cfutils.models.generation.types import Request

    tokenizer = tokenizers.load_tokenizer(folder)
    start = tokenizers.start_token(tokenizer, lab.profile.start_token)
    stop = tokenizers.end_tokens(tokenizer, start)
    requests = [Request((start,), 1000 * number + i) for i in range(n)]
    if arm in ("forward", "generate"):
        model = loading.load(folder, dtype=dtype)
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
    engine = open_engine(
        "vllm" if arm == "vllm" else "transformers", folder, dtype=dtype, max_length=length + 1, chunk=n,
        pass_tokens=lab.profile.pass_tokens,
    )  # fmt: skip
    with engine:
        clock = time.perf_counter()
        engine.draw(requests, temperature=1.0, max_tokens=2, stop=stop)
        middle = time.perf_counter()
        drawn = engine.draw(requests, temperature=1.0, max_tokens=length, stop=stop)
        seconds = time.perf_counter() - middle
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
