"""The trainer of an encoder: its weights, optimiser, progress and texts, with steps and validations."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...arrangements import arrangement_named
from ...errors import InputError
from ...lm.frozen import FrozenLM
from ...lm.identity import library_versions, same_weights
from ..encoding import Encoder
from ..evaluate import LengthScore, encoder_vectors, score_vectors
from ..network import EncoderNetwork
from ..objective import ObjectiveGradient, objective_gradient
from ..recipes import EncoderTraining, Schedule
from .checkpoint import Progress, read_checkpoint, restore
from .distributed import Processes
from .texts import TrainingTexts, cached_training_texts

_REMOVED_SETTINGS = {"precision": "float32", "schedule.decay": "end"}
"""Settings that checkpoints of former versions name, with the values that are still meant."""

_VALIDATION_LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128)


class Trainer:
    """Trains one encoder.

    Args:
        lm: the frozen model.
        initial: the encoder to train from; it is not changed.
        training: how to train.
        processes: the processes that train together.

    Attributes:
        network: the weights.
        optimiser: AdamW over them.
        progress: how far the training is.
        settings: the training's settings, as JSON values.
    """

    def __init__(self, lm: FrozenLM, initial: Encoder, training: EncoderTraining, processes: Processes) -> None:
        self.lm, self.training, self.processes = lm, training, processes
        self.network = _copied(initial, lm)
        self.initial = replace(initial, network=self.network)
        config = initial.config
        self.arrangement = arrangement_named(config.arrangement)
        self.settings: dict[str, Any] = {
            "encoder": config.to_json(),
            "training": training.to_json(),
            "model": lm.identity.fingerprint,
            "dtype": lm.dtype_name,
            "beginning": initial.name,
        }
        self.optimiser = _adamw(self.network, training.schedule)
        self.progress = Progress(frontier=min(training.curriculum.first, config.max_tokens))

    def resume(self, path: Path) -> None:
        """Load a checkpoint of the same training.

        Raises:
            InputError: it is damaged, or its training had other settings.
        """
        tensors, progress, settings = read_checkpoint(path)
        refusal = _refusal(settings, self.settings, progress.step)
        if refusal:
            raise InputError(f"{path}: {refusal}; give the same settings, another folder, or begin anew (--force)")
        restore(tensors, self.network, self.optimiser)
        self.progress = progress

    def prepare(self, cache: Path | None = None) -> None:
        """Prepare texts (from the cache if it holds them) and processes; a finished training needs neither."""
        choice, max_tokens = self.training.texts, self.initial.config.max_tokens
        self.texts: TrainingTexts
        self.texts, validation = cached_training_texts(
            self.lm, choice, max_tokens, cache, write=self.processes.rank == 0
        )
        self.held_out = validation.evenly_spaced(max_tokens, max(choice.validation_texts, choice.texts or 0))
        self.data_parallel = self.processes.data_parallel(self.network)

    def step(self) -> dict[str, Tensor | float]:
        """Take one optimiser step; its numbers for the curve, as tensors that are not synchronised."""
        training, progress = self.training, self.progress
        rate = training.schedule.rate(progress.step, training.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        for part in range(training.accumulate):
            length = training.curriculum.draw(progress.frontier, f"{training.seed} {progress.step} {part}")
            if part + 1 < training.accumulate:
                with self.processes.without_averaging(self.data_parallel):
                    gradient = self._add_gradient(length, part)
            else:
                gradient = self._add_gradient(length, part)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), training.schedule.clip)
        for parameter in self.network.parameters():
            if parameter.grad is not None:  # a gradient that is not finite counts as 0; a test would synchronise
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        self.optimiser.step()
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
        positions = len(self.arrangement.layout(length, self.initial.config.e_tokens).slots)
        n_processes = self.processes.count
        n_texts = max(1, training.batch_positions // (positions * training.accumulate * n_processes)) * n_processes
        key = f"{training.seed} {progress.step} {part}"
        target_ids = self.texts.draw(length, n_texts, training.texts.own_share, _seed(f"texts {key}"))
        target_ids = target_ids[self.processes.rank :: n_processes]
        embeddings, hidden = self.initial.features(self.lm, target_ids)
        e, m = self.data_parallel(embeddings, hidden)
        noise_seed = _seed(f"noise {key} {self.processes.rank}")
        gradient = objective_gradient(self.lm, self.arrangement, e, m, target_ids, training.objective, noise_seed)
        torch.autograd.backward([e, m], [gradient.e / training.accumulate, gradient.m / training.accumulate])
        refine_steps = training.objective.refine_steps
        progress.tokens += n_texts * length
        progress.positions += n_texts * positions * (1 + (refine_steps + 2 if refine_steps else 0))
        return gradient

    def validate(self, *, advance: bool) -> dict[str, Any]:
        """Score the held-out texts by length, and advance the frontier if asked for; the row for the curve."""
        training, progress, max_tokens = self.training, self.progress, self.initial.config.max_tokens
        lengths = sorted({n for n in _VALIDATION_LENGTHS if n < max_tokens} | {progress.frontier, max_tokens})
        scores = {
            kind: {str(n): self._score(ids[:, :n]) for n in lengths} for kind, ids in self.held_out.items() if len(ids)
        }
        row: dict[str, Any] = self._row_head("validation")
        for kind, by_length in scores.items():
            row[kind] = {
                n: {"token_accuracy": s.token_accuracy, "exact_match": s.exact_match, "loss": s.loss}
                for n, s in by_length.items()
            }
        progress.validation = row
        if advance:
            accuracies = [by_length[str(progress.frontier)].token_accuracy for by_length in scores.values()]
            mean_accuracy = torch.tensor(sum(accuracies) / len(accuracies), dtype=torch.float64)
            accuracy = self.processes.mean(mean_accuracy).item()
            steps_at_frontier = progress.step - progress.frontier_step
            frontier = training.curriculum.advance(progress.frontier, accuracy, steps_at_frontier, max_tokens)
            if frontier != progress.frontier:
                progress.frontier, progress.frontier_step = frontier, progress.step
        return row

    def _score(self, target_ids: Tensor) -> LengthScore:
        e, m = encoder_vectors(self.initial, self.lm, target_ids)
        return score_vectors(self.lm, self.arrangement, e, m, target_ids)

    def _row_head(self, kind: str) -> dict[str, Any]:
        p = self.progress
        return {"kind": kind, "step": p.step, "tokens": p.tokens, "positions": p.positions, "frontier": p.frontier}

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
            "frontier": p.frontier,
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


def _adamw(network: EncoderNetwork, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW with decay on weight matrices, and none on biases, scales, norms and the start."""
    decayed = [p for p in network.parameters() if p.ndim > 1 and p is not network.log_scale]
    not_decayed = [p for p in network.parameters() if p.ndim <= 1 or p is network.log_scale]
    groups = [
        {"params": decayed, "weight_decay": schedule.weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.lr, betas=schedule.betas)


def _refusal(before: dict[str, Any], now: dict[str, Any], step: int) -> str | None:
    """Why a checkpoint of these settings is not resumed, or None.

    The number of steps may change as long as the learning rate does not fall yet.
    """
    if same_weights(str(before.get("model")), now["model"]):
        before = before | {"model": now["model"]}
    old, new = (_REMOVED_SETTINGS | _flat(settings["training"]) for settings in (before, now))
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
