"""Replay of a base's own samples in TRL's SFTTrainer: target loss + lambda * KL(base || tuned), or NLL, on replay.

    replay = datasets.load_from_disk("samples/dataset")      # written by `cfutils sample`
    ReplaySFTTrainer(model, args, train_dataset=mine, processing_class=tokenizer, replay=replay).train()

The term is that of `training.loop`: the mean over replay tokens, at their full vocabulary for the KL, times lambda.
Each batch gets one more forward pass, over replay that is padded and never packed with the target. That pass asks the
model for logits, without labels: TRL's fused head, which returns none, and Liger's are for passes that have them.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl import SFTTrainer

from cfutils.data.sequences import Sequence, from_samples
from cfutils.errors import UserError, invalid_value
from cfutils.training import losses

COLUMNS = ("prompt_ids", "token_ids")
"""What a sample continues, and what was drawn."""


class ReplaySFTTrainer(SFTTrainer):
    """An SFTTrainer whose training loss has a replay term; its evaluation is SFTTrainer's own."""

    def __init__(
        self,
        model: str | PreTrainedModel,
        *args: Any,
        replay: Dataset,
        replay_weight: float = 1.0,
        replay_loss: Literal["kl", "nll"] = "kl",
        replay_batch_size: int | None = None,
        base: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Take SFTTrainer's arguments, and the replay.

        replay: samples with the columns prompt_ids and token_ids, under the model's own tokenizer.
        replay_weight: lambda. At 1 a replay token weighs as much as a target token where a step has as many of each.
        replay_batch_size: samples beside each batch of a device; as many as target items unless given. The pool is
            shuffled by the arguments' seed and gone through again when it is used up; the log has `replay_passes`.
        base: what the KL is measured from. Left out, it is the model as it is before training: with adapters the same
            weights with the adapters off, else a copy, which takes the memory of its weights.
        Raises `UserError` for values that are not allowed, samples of another vocabulary, and a KL that needs a copy of
        a model that FSDP or DeepSpeed divides.
        """
        if replay_loss not in ("kl", "nll"):
            raise invalid_value("replay_loss", replay_loss, "'kl' or 'nll'")
        if not 0 <= replay_weight < float("inf"):
            raise invalid_value("replay_weight", replay_weight, "a number from 0")
        if lacking := set(COLUMNS) - set(replay.column_names):
            raise UserError(f"replay lacks the columns {', '.join(sorted(lacking))}: `cfutils sample` writes them")
        super().__init__(model, *args, **kwargs)
        self.replay = from_samples(replay.select_columns(COLUMNS).to_pandas())
        largest = max((max(one.ids) for one in self.replay), default=-1)
        if not 0 <= largest < (size := self.model.config.get_text_config().vocab_size):
            raise UserError(f"replay holds token {largest}, the model {size} tokens: draw samples from its own base")
        self.replay_weight, self.replay_loss = replay_weight, replay_loss
        self.replay_batch_size = replay_batch_size or self.args.per_device_train_batch_size
        self.base = self._beside(base) if replay_loss == "kl" else None
        self._drawn, self._at, self._passes = 0, -1, 0.0
        self._terms: list[float] = []

    def _beside(self, base: PreTrainedModel | None) -> PreTrainedModel | None:
        """Return the frozen base on the trainer's device, None where it is the model without its adapters."""
        if base is None and hasattr(self.model, "disable_adapter"):
            return None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UserError(
                "KL replay needs the base beside the model, which FSDP and DeepSpeed divide: set replay_loss='nll', or "
                "train adapters"
            )
        if base is None:
            base = copy.deepcopy(self.model)
            vars(base).pop("forward", None)  # TRL's fused head has put one there that calls the model being tuned
        return self.accelerator.prepare_model(base.requires_grad_(False).eval(), evaluation_mode=True)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return SFTTrainer's loss of a batch, in training with lambda times the replay term, in nats per token."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self.model.training:
            return found
        loss, outputs = found if return_outputs else (found, None)
        term = self.replay_term(model, self._next())
        self._terms.append(self.accelerator.gather(term.detach()).mean().item())
        # SFTTrainer's loss is a share of all batches' tokens where it is given their number, a mean otherwise
        steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        loss = loss + self.replay_weight * term.to(loss.device) / steps
        return (loss, outputs) if return_outputs else loss

    def replay_term(self, model: Any, batch: list[Sequence]) -> Tensor:
        """Return the mean over a batch's supervised tokens of KL(base || model), or of the NLL, in nats."""
        device = self.args.device
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(one.ids) for one in batch], batch_first=True).to(device)
        first, length = torch.tensor([(one.first, len(one.ids)) for one in batch], device=device)[..., None].unbind(1)
        places = torch.arange(ids.shape[1], device=device)
        wanted = (places + 1 >= first) & (places + 1 < length)  # what predicts a supervised token
        inputs = {"input_ids": ids, "attention_mask": (places < length).long(), "use_cache": False}
        rows = self._rows(model, inputs, wanted)
        if self.replay_loss == "nll":
            return losses.token_nll(rows, ids.roll(-1, dims=1)[wanted]).mean()
        with torch.no_grad(), self.accelerator.autocast():
            if self.base is not None:
                base_rows = self._rows(self.base, inputs, wanted)
            else:
                with self.accelerator.unwrap_model(model).disable_adapter():
                    base_rows = self._rows(model, inputs, wanted)
        return losses.token_kl(base_rows, rows).mean()

    @staticmethod
    def _rows(model: Any, inputs: dict[str, Any], wanted: Tensor) -> Tensor:
        """Return logits (n, vocabulary), in fp32, at the wanted places (batch, length)."""
        logits = model(**inputs).logits
        if logits is None or logits.shape[:2] != wanted.shape:
            raise UserError(
                "the model returns no logits for every token of the replay, so there is no replay term: turn its fused "
                "head off (use_liger_kernel=False), and train no virtual tokens"
            )
        return logits[wanted].float()

    def _next(self) -> list[Sequence]:
        """Return the replay beside the next batch; a run that is resumed goes on where it stopped."""
        step = self.state.global_step
        self._drawn, self._at = (self._drawn + 1 if step == self._at else 0), step
        batch = (step * self.args.gradient_accumulation_steps + self._drawn) * self.args.world_size
        begin = (batch + self.args.process_index) * self.replay_batch_size
        self._passes = (batch + self.args.world_size) * self.replay_batch_size / len(self.replay)
        places = (divmod(place, len(self.replay)) for place in range(begin, begin + self.replay_batch_size))
        return [self.replay[self._order(number)[place]] for number, place in places]

    def _order(self, number: int) -> np.ndarray:
        """Return the order of the pool in one of the passes over it."""
        return np.random.default_rng([self.args.seed, number]).permutation(len(self.replay))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the replay term beside SFTTrainer's values: its mean since the last log, and passes over the pool."""
        if self._terms and "loss" in logs:
            logs["replay_loss"] = sum(self._terms) / len(self._terms)
            logs["replay_passes"] = round(self._passes, 3)
            self._terms.clear()
        super().log(logs, *args, **kwargs)
