"""`cfutils sample`: samples of a model as a data set to keep, to publish, or to mix into anybody's fine-tuning.

Samples are drawn by the suite's own step through the store: a kill loses one chunk at most, and what was drawn is
never drawn again. `integrations.exports` writes the files; this module decides what is drawn, and what the card says.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cfutils import atomic, paths
from cfutils.errors import UserError, invalid_value
from cfutils.events import say
from cfutils.pipeline import estimate
from cfutils.pipeline.session import Session
from cfutils.pipeline.steps import Steps
from cfutils.pipeline.store import Store
from cfutils.profiles import Profile

KINDS = {"context-free": 1, "template-prefix": 256, "contextual": 1024}
"""What a sample continues (the start token; a chat template up to the user's words; prompts of one's own), and the
tokens that this may have, beside those of the sample."""
TOKEN_BYTES = 100
"""Disk that a token may take in the store, and again in the folder: ids, log-probability, and text three times."""
COMMAND = "command.json"
"""What a folder was written by: another command must not overwrite it."""
EXAMPLE = """examples:
  cfutils sample shipped:tiny -n 1000 --engine transformers --out samples
  cfutils sample owner/model -n 10000 --dtype bfloat16 --data mine.jsonl --ratio 0.3 --out samples

Writes samples.parquet, a folder of Hugging Face datasets, text.jsonl, prompt_completion.jsonl, dataset_info.json, a
card (README.md), and MIXING.md: the lines that mix them in TRL, axolotl, LLaMA-Factory or plain pretraining."""


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command by `command(name, about, call, epilog=...)`."""
    parser = command("sample", "Draw samples of a model: a data set in the files that other trainers read.", run,
                     epilog=EXAMPLE)  # fmt: skip
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder, a hub id, shipped:tiny or asset:smollm2")
    add("-n", "--n-samples", type=int, required=True, metavar="N", help="number of samples")
    add("--out", required=True, metavar="DIR", help="a folder that is new or empty")
    add("--kind", choices=KINDS, default="context-free", help="what a sample continues (default: %(default)s)")
    add("--prompts", metavar="FILE", help="contextual: data whose prompts are continued, in any form of a target")
    add("--prompt-column", metavar="NAME", help="column of the prompts, where FILE has no answers")
    add("--chat-template", action="store_true", help="put prompts into the model's chat template")
    add("--temperature", type=float, default=1.0, metavar="T", help="1 draws from the model itself (default)")
    add("--max-tokens", type=int, default=128, metavar="N", help="cap on a sample's length (default: %(default)s)")
    add("--start-token", metavar="TEXT", help="default: the tokenizer's BOS, else its EOS")
    add("--engine", choices=("vllm", "transformers"), default="vllm", help="default: %(default)s")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    add("--chunk", type=int, default=256, metavar="N", help="samples drawn, and kept, together (default: %(default)s)")
    add("--revision", metavar="COMMIT", help="commit or tag of a hub id")
    add("--ratio", type=float, default=0.5, metavar="R", help="share of the mix, in tokens (default: %(default)s)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--target-tokens", type=int, metavar="N", help="tokens of your own data that carry loss")
    size.add_argument("--data", metavar="FILE", help="your own data, to count them in")


def run(options: argparse.Namespace) -> int:
    """Draw what is not there yet, and write the folder.

    Raises `UserError` before anything is drawn for a folder that holds something else, and for a full disk.
    """
    from cfutils.integrations import cards, exports
    from cfutils.models import tokenizers

    out = paths.given("out", options.out).absolute()
    written = _written(out)
    profile = _profile(options)
    exports.Share(tokens=[], ratio=options.ratio, target_tokens=options.target_tokens)  # refuses bad numbers now
    store = Store()
    _check_disk(profile, store.folder, out)
    with Session(profile.execution) as session:
        base = store.ensure_here(Steps(profile, store).base, session)
        profile = _within_context(profile, base.model_folder, options.kind)
        tokenizer = session.tokenizer(base.model_folder)
        start, told = tokenizers.start_token(tokenizer, profile.start_token), {}
        if options.kind == "contextual":
            profile, told = _with_prompts(profile, tokenizer)
        step = Steps(profile, store).samples(options.kind.replace("-", "_"), n=options.n_samples)
        target_tokens = _count(options.data, tokenizer, start) if options.data else options.target_tokens
        command = {"samples": step.key, "ratio": options.ratio, "target_tokens": target_tokens}
        if written is not None:
            return _same(out, written, command)
        say(estimate.sentence(estimate.expected(store.missing([step]), store)) or "the samples are there")
        artifact = store.ensure_here(step, session)
    samples = artifact.table("samples")
    found = exports.rows(samples, tokenizer, start=start)
    if found.empty:
        raise UserError(f"all {len(samples)} samples are empty: the end token came first. Check --start-token.")
    share = exports.Share(tokens=found["tokens"].tolist(), ratio=options.ratio, target_tokens=target_tokens)
    with atomic.replacing_folder(out) as half:
        exports.write(half, samples, found, share, shown=options.out, starts=exports.adds_start(tokenizer, start))
        cards.write(half, base, artifact, samples, model=options.model, told=told, same=found["same"].mean())
        command["files"] = {path.relative_to(half).as_posix(): path.stat().st_size for path in _files(half)}
        (half / COMMAND).write_text(json.dumps(command, indent=1) + "\n", encoding="utf-8")
    say(f"{out}: {len(samples):,} samples, {samples['token_ids'].map(len).sum():,} tokens\n{exports.summary(share)}")
    say(f"The lines that mix them are in {Path(options.out) / 'MIXING.md'}.")
    return 0


def _profile(options: argparse.Namespace) -> Profile:
    if (options.kind == "contextual") != (options.prompts is not None):
        raise invalid_value("--prompts", options.prompts, "a file, for --kind contextual alone")
    if options.prompts is None and (options.prompt_column or options.chat_template):
        raise UserError("--prompt-column and --chat-template are for --kind contextual alone")
    own: dict[str, Any] = {}
    if options.prompts is not None:
        name = options.prompt_column  # answers are not needed: the column stands for them too
        own = {"target": options.prompts, "columns": {"prompt": name, "response": name} if name else {}}
    return Profile(
        name="sample", about="Samples as a data set.", base=options.model, revision=options.revision,
        start_token=options.start_token, n_samples=options.n_samples, temperature=options.temperature,
        max_tokens=options.max_tokens, engine=options.engine, dtype=options.dtype, chunk=options.chunk,
        max_length=KINDS[options.kind], chat_template=options.chat_template, **own,
    )  # fmt: skip


def _written(out: Path) -> dict[str, Any] | None:
    """Return the command that wrote a folder, None if it is new or empty; raises for anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        written = json.loads((out / COMMAND).read_text(encoding="utf-8"))
        return {name: written[name] for name in ("samples", "ratio", "target_tokens", "files")}
    except (OSError, ValueError, KeyError, TypeError):
        raise invalid_value("--out", str(out), "a folder that is new or empty") from None


def _same(out: Path, written: dict[str, Any], command: dict[str, Any]) -> int:
    """Leave a folder of the same command as it is; raises if another wrote it, or files of it are damaged."""
    if differ := [name for name, value in command.items() if written.get(name) != value]:
        raise invalid_value(
            "--out", str(out), f"a folder of the same command; this one has other {', '.join(differ)}",
            "Give a new folder: samples that are there already are not drawn again.",
        )  # fmt: skip
    sizes = {path.relative_to(out).as_posix(): path.stat().st_size for path in _files(out)}
    if damaged := [name for name, size in written["files"].items() if sizes.get(name) != size]:
        raise invalid_value("--out", str(out), f"whole: {', '.join(damaged)} changed", "Remove the folder, try again.")
    say(f"{out} is there, from the same command; nothing was drawn")
    return 0


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _check_disk(profile: Profile, *folders: Path) -> None:
    """Raise `UserError` if the disk cannot hold samples that are all as long as they may be."""
    need = profile.n_samples * profile.max_tokens * TOKEN_BYTES
    for folder in folders:
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        if (free := shutil.disk_usage(there).free) < need:
            raise UserError(
                f"disk too full: up to {need / 1e9:.1f} GB are needed below {folder}, {free / 1e9:.1f} GB are free. "
                "Lower -n or --max-tokens, free some space, or choose a larger disk (--out, CFUTILS_RUNS)."
            )


def _within_context(profile: Profile, base: Path, kind: str) -> Profile:
    """Return the profile with prompts that leave room for samples in what the base was made to read.

    Raises `UserError` where samples alone are longer: the base would write noise.
    """
    longest = json.loads((base / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    if longest is None:
        return profile
    # one draw may go on behind another, and what is too long is cut off again; vLLM needs room for both
    turns = 2 if kind == "template-prefix" and profile.engine == "vllm" else 1
    if (room := longest - turns * profile.max_tokens) < 1:
        raise invalid_value("--max-tokens", profile.max_tokens, f"below {longest // turns}: the base reads {longest}")
    return profile.change(max_length=min(profile.max_length, room))


def _with_prompts(profile: Profile, tokenizer: Any) -> tuple[Profile, dict[str, str]]:
    """Return the profile with as many prompts as the file has, and what is not used of it."""
    from cfutils.data import sequences, targets
    from cfutils.data.splits import is_heldout

    targets.target(profile.target)
    fate: Counter[str] = Counter()
    for one in targets.own(profile.target, profile.columns).examples:
        if not one.prompt:
            raise invalid_value("--prompts", profile.target, "data with prompts, which texts alone have not")
        if is_heldout(one.group):
            fate["held out"] += 1
        elif len(sequences.from_example(tokenizer, one, chat_template=profile.chat_template).ids) > profile.max_length:
            fate[f"longer than {profile.max_length} tokens"] += 1
        else:
            fate["used"] += 1
    told = ", ".join(f"{n:,} {what}" for what, n in fate.items())
    if not fate["used"]:
        raise invalid_value("--prompts", profile.target, f"data with a prompt that is continued ({told})")
    say(f"prompts: {told} (a hash holds a quarter out of training)")
    return profile.change(n_train=min(fate["used"], profile.n_samples)), {"prompts": told}


def _count(data: str, tokenizer: Any, start: int) -> int:
    """Return how many tokens of one's own data carry loss: those of answers, or of texts, and end tokens."""
    from cfutils.data import sequences, targets

    targets.target(data)
    found = [
        sequences.from_example(tokenizer, one, chat_template=False, start=None if one.prompt else start).supervised
        for one in targets.own(data).examples
    ]
    say(f"{Path(data).name}: {len(found):,} items, {sum(found):,} tokens carry loss")
    return sum(found)
