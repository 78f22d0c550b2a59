"""What was delivered is loaded by other tools, which all write the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

PROMPTS = ["Say 3:", "largest: 4 8 2 6 ->", "reverse: cat cup owl ->"]
TOKENS = 12
VLLM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":  # its engine is a process that is spawned
    model, adapter, prompts, n = json.loads(sys.argv[1])
    llm = LLM(model, dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=4,
              kv_cache_memory_bytes=2**28, enable_lora=adapter is not None, max_lora_rank=8)
    lora = LoRARequest("mine", 1, adapter) if adapter else None
    found = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=n), use_tqdm=False, lora_request=lora)
    print("FOUND", json.dumps([one.outputs[0].text for one in found]))
"""


@pytest.fixture(scope="module")
def texts(adapted):
    """What transformers writes, greedily."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = adapted.out / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        drawn = model.generate(**ids, do_sample=False, max_new_tokens=TOKENS)[0, ids["input_ids"].shape[1] :]
        found.append(tokenizer.decode(drawn, skip_special_tokens=True))
    assert all(found) and len(set(found)) == len(PROMPTS)
    return found


def test_lm_eval_loads_the_model(adapted, texts):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(adapted.out / "model"), device="cpu", dtype="float32", batch_size=1)
    how = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": TOKENS}
    asked = [Instance("generate_until", {}, (prompt, how), i) for i, prompt in enumerate(PROMPTS)]
    assert model.generate_until(asked, disable_tqdm=True) == texts


@pytest.mark.parametrize("merged", [True, False])
def test_vllm_loads_the_model_and_the_adapters(adapted, texts, tmp_path, merged):
    from cfutils.models.bases import reference

    pytest.importorskip("vllm")
    (tmp_path / "generate.py").write_text(VLLM)
    base = json.loads((adapted.out / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == reference("shipped:tiny", tmp_path)
    model, adapter = (str(adapted.out / "model"), None) if merged else (base, str(adapted.out / "adapter"))
    done = subprocess.run(
        [sys.executable, "generate.py", json.dumps([model, adapter, PROMPTS, TOKENS])], cwd=tmp_path,
        env={**os.environ, "VLLM_NO_USAGE_STATS": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    assert json.loads(line.removeprefix("FOUND ")) == texts
