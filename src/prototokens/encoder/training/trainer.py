"""The trainer of an encoder: its weights, optimiser, progress and texts, with steps and validations."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...lm.frozen import FrozenLM
from ...lm.identity import library_versions, same_weights
from ..encoding import Encoder, encoder_vectors
from ..evaluate import LengthScore, score_vectors
from ..network import EncoderNetwork
from ..objective import ObjectiveGradient, objective_gradient
from ..recipes import EncoderTraining
from .checkpoint import Progress, read_checkpoint, restore
from .distributed import Processes
from .optimisers import optimisers_of
from .texts import TrainingTexts, cached_training_texts


class Trainer:
    """Trains one encoder.

    Args:
        lm: the frozen model.
        initial: the encoder to train from; it is not changed.
        training: how to train.
        processes: the processes that train together.

    Attributes:
        network: the weights.
        optimisers: what changes them.
        progress: how far the training is.
        settings: the training's settings, as JSON values.
    """

    def __init__(self, lm: FrozenLM, initial: Encoder, training: EncoderTraining, processes: Processes) -> None:
        self.lm, self.training, self.processes = lm, training, processes
        self.network = _copied(initial, lm)
        self.initial = replace(initial, network=self.network)
        config = initial.config
        self.arrangement = config.arrangement
        self.settings: dict[str, Any] = {
            "encoder": config.to_json(),
            "training": training.to_json(),
            "model": lm.identity.fingerprint,
            "dtype": lm.dtype_name,
            "beginning": initial.name,
        }
        self.optimisers = optimisers_of(self.network, training.schedule)
        self.progress = Progress()

    def resume(self, path: Path) -> None:
        """Load a checkpoint of the same training.

        Raises:
            InputError: it is damaged, or its training had other settings.
        """
        tensors, progress, settings = read_checkpoint(path)
        refusal = _refusal(settings, self.settings, progress.step)
        if refusal:
            raise InputError(f"{path}: {refusal}; give the same settings, another folder, or begin anew (--force)")
        restore(tensors, self.network, self.optimisers)
        self.progress = progress

    def prepare(self, cache: Path | None = None) -> None:
        """Prepare texts (from the cache if it holds them) and processes; a finished training needs neither."""
        choice, longest = self.training.texts, max(self.training.lengths)
        self.texts: TrainingTexts
        self.texts, validation = cached_training_texts(self.lm, choice, longest, cache, write=self.processes.rank == 0)
        self.held_out = validation.evenly_spaced(longest, max(choice.validation_texts, choice.texts or 0))
        self.data_parallel = self.processes.data_parallel(self.network)

    def step(self) -> dict[str, Tensor | float]:
        """Take one optimiser step; its numbers for the curve, as tensors that are not synchronised."""
        training, progress = self.training, self.progress
        rate = training.schedule.rate(progress.step, training.steps)
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = rate
        for part in range(training.accumulate):
            length = training.draw_length(self.initial.config.block_length, f"{training.seed} {progress.step} {part}")
            if part + 1 < training.accumulate:
                with self.processes.without_averaging(self.data_parallel):
                    gradient = self._add_gradient(length, part)
            else:
                gradient = self._add_gradient(length, part)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), training.schedule.clip)
        for parameter in self.network.parameters():
            if parameter.grad is not None:  # a gradient that is not finite counts as 0; a test would synchronise
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        for optimiser in self.optimisers:
            optimiser.step()
        progress.step += 1
        return {
            "length": length,
            "loss": gradient.loss_nats,
            **({"refined_loss": gradient.refined_loss_nats} if training.objective.refine_steps else {}),
            "token_accuracy": gradient.token_accuracy,
            "gradient_norm": norm,
            "lr": rate,
        }

    def _add_gradient(self, length: int, part: int) -> ObjectiveGradient:
        """Add the gradient of the step's batch number `part`, of texts of this length, to the network's."""
        training, progress = self.training, self.progress
        positions = len(self.arrangement.layout(length).slots)
        n_processes = self.processes.count
        n_texts = max(1, training.batch_positions // (positions * training.accumulate * n_processes)) * n_processes
        key = f"{training.seed} {progress.step} {part}"
        target_ids = self.texts.draw(length, n_texts, training.texts.own_share, _seed(f"texts {key}"))
        target_ids = target_ids[self.processes.rank :: n_processes].to(self.lm.device, non_blocking=True)
        embeddings, hidden = self.initial.features(self.lm, target_ids)
        e, m = self.data_parallel(embeddings, hidden)
        noise_seed = _seed(f"noise {key} {self.processes.rank}")
        gradient = objective_gradient(self.lm, self.arrangement, e, m, target_ids, training.objective, noise_seed)
        torch.autograd.backward([e, m], [gradient.e / training.accumulate, gradient.m / training.accumulate])
        refine_steps = training.objective.refine_steps
        progress.tokens += n_texts * length
        progress.positions += n_texts * positions * (1 + (refine_steps + 2 if refine_steps else 0))
        return gradient

    def validate(self) -> dict[str, Any]:
        """Score the held-out texts at each of the lengths; the row for the curve."""
        row: dict[str, Any] = self._row_head("validation")
        for kind, ids in self.held_out.items():
            if len(ids):
                scores = {n: self._score(ids[:, :n]) for n in sorted(set(self.training.lengths))}
                row[kind] = {
                    str(n): {"token_accuracy": s.token_accuracy, "exact_match": s.exact_match, "loss": s.loss}
                    for n, s in scores.items()
                }
        self.progress.validation = row
        return row

    def _score(self, target_ids: Tensor) -> LengthScore:
        e, m = encoder_vectors(self.initial, self.lm, target_ids)
        return score_vectors(self.lm, self.arrangement, e, m, target_ids)

    def _row_head(self, kind: str) -> dict[str, Any]:
        p = self.progress
        return {"kind": kind, "step": p.step, "tokens": p.tokens, "positions": p.positions}

    def row(self, step_numbers: dict[str, Tensor | float]) -> dict[str, Any]:
        """A step's row for the curve."""
        numbers = {name: value.item() if isinstance(value, Tensor) else value for name, value in step_numbers.items()}
        return self._row_head("step") | numbers | {"seconds": round(self.progress.seconds, 3)}

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag if self.processes.count == 1 else bool(self.processes.mean(torch.tensor(float(flag))) > 0)

    def encoder(self) -> Encoder:
        """The encoder as trained so far."""
        p = self.progress
        record = {
            "step": p.step,
            "tokens": p.tokens,
            "positions": p.positions,
            "seconds": round(p.seconds, 1),
            "validation": p.validation,
            "settings": {k: v for k, v in self.settings.items() if k != "encoder"},
            "versions": library_versions(),
        }
        initial = self.initial.training
        trained_before = {"begun_at": initial} if initial.get("step") else {}
        return replace(self.initial, training=initial | record | trained_before)


def _copied(encoder: Encoder, lm: FrozenLM) -> EncoderNetwork:
    """A copy of an encoder's network on the model's device, so that training does not change the encoder."""
    network = EncoderNetwork(encoder.config, encoder.network.width, encoder.network.hidden_width)
    network.load_state_dict(encoder.network.state_dict())
    return network.to(lm.device)


def _refusal(before: dict[str, Any], now: dict[str, Any], step: int) -> str | None:
    """Why a checkpoint of these settings is not resumed, or None.

    The number of steps may change as long as the learning rate does not fall yet.
    """
    if same_weights(str(before.get("model")), now["model"]):
        before = before | {"model": now["model"]}
    # A setting that a former version did not have means its default.
    old, new = (_flat(EncoderTraining().to_json()) | _flat(settings["training"]) for settings in (before, now))
    old_steps, new_steps = old.pop("steps"), new.pop("steps")
    different = [name for name in now if name != "training" and before.get(name) != now[name]]
    different += [name for name in old | new if old.get(name) != new.get(name)]
    if different:
        return f"its training had other settings ({', '.join(different)})"
    if old_steps != new_steps and step > (1 - new["schedule.decay_share"]) * min(old_steps, new_steps):
        return f"its learning rate already falls towards step {old_steps}: the steps cannot be changed any more"
    return None


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted names, as `--set` takes them."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _seed(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
