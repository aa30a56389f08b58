"""One training run: weights, optimiser, progress and texts, and what a step and a validation do with them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...lm.frozen import FrozenLM
from ...lm.identity import library_versions
from ..encoding import Encoder
from ..evaluate import LengthScore, score, written
from ..network import EncoderNetwork
from ..objective import Pull, pull
from ..recipes import EncoderTraining, Schedule
from .checkpoint import Progress, read_checkpoint, restore
from .distributed import Processes
from .texts import TextPool, cached_pools


class TrainingRun:
    """The state of one training.

    Args:
        lm: the frozen model.
        beginning: the encoder to set out from; it is left as it is.
        training: how to train.
        processes: those that train together.

    Attributes:
        network: the weights.
        optimiser: AdamW over them.
        progress: how far training is.
        settings: what it was asked for, as JSON values.
    """

    def __init__(self, lm: FrozenLM, beginning: Encoder, training: EncoderTraining, processes: Processes) -> None:
        self.lm, self.training, self.processes = lm, training, processes
        self.network = _copied(beginning, lm)
        self.beginning = replace(beginning, network=self.network)
        config = beginning.config
        self.settings: dict[str, Any] = {
            "encoder": config.to_json(),
            "training": training.to_json(),
            "model": lm.identity.fingerprint,
            "dtype": str(lm.dtype).removeprefix("torch."),
            "beginning": beginning.name,
        }
        self.optimiser = _adamw(self.network, training.schedule)
        self.progress = Progress(frontier=min(training.curriculum.first, config.max_tokens))

    def go_on(self, path: Path) -> None:
        """Take over a checkpoint of the same training."""
        tensors, progress, settings = read_checkpoint(path)
        refusal = _refusal(settings, self.settings, progress.step)
        if refusal:
            raise InputError(f"{path}: {refusal}; give the same settings, another folder, or begin anew (--force)")
        restore(tensors, self.network, self.optimiser)
        self.progress = progress

    def prepare(self, cache: Path | None = None) -> None:
        """Tokenize the texts, or read them from a cache, and join the processes: of no use to a finished training."""
        choice, config = self.training.texts, self.beginning.config
        pools = cached_pools(self.lm, choice, config.max_tokens, cache, write=self.processes.rank == 0)
        self.pool: TextPool = pools[0]
        self.held_out = pools[1].spread(config.max_tokens, max(choice.validation_texts, choice.texts or 0))
        self.joined = self.processes.joined(self.network)

    def step(self) -> dict[str, Tensor | float]:
        """One optimiser step; what was seen, as tensors that nobody waited for."""
        training, progress = self.training, self.progress
        rate = training.schedule.rate(progress.step, training.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        for part in range(training.accumulate):
            length = training.curriculum.draw(progress.frontier, f"{training.seed} {progress.step} {part}")
            if part + 1 < training.accumulate:
                with self.processes.apart(self.joined):
                    found = self._add_gradient(length, part)
            else:
                found = self._add_gradient(length, part)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), training.schedule.clip)
        for parameter in self.network.parameters():
            if parameter.grad is not None:  # a batch that was not finite counts as nothing, without waiting for it
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        self.optimiser.step()
        progress.step += 1
        return {
            "length": length,
            "loss": found.loss,
            **({"refined_loss": found.refined_loss} if training.objective.refine_steps else {}),
            "token_accuracy": found.token_accuracy,
            "gradient_norm": norm,
            "lr": rate,
        }

    def _add_gradient(self, length: int, part: int) -> Pull:
        """Add a batch's gradient to the network's."""
        training, progress, config = self.training, self.progress, self.beginning.config
        positions = len(config.laid_out.layout(length, config.e_tokens).slots)
        count = self.processes.count
        rows = max(1, training.batch_positions // (positions * training.accumulate * count)) * count
        key = f"{training.seed} {progress.step} {part}"
        target_ids = self.pool.draw(length, rows, training.texts.own_share, _seed(f"texts {key}"))
        target_ids = target_ids[self.processes.rank :: count]
        embeddings, hidden = self.beginning.features(self.lm, target_ids)
        with torch.autocast(self.lm.device.type, torch.bfloat16, enabled=training.precision == "bfloat16"):
            e, m = self.joined(embeddings, hidden)
        noise_seed = _seed(f"noise {key} {self.processes.rank}")
        found = pull(self.lm, config.laid_out, e, m, target_ids, training.objective, noise_seed)
        torch.autograd.backward([e, m], [found.e / training.accumulate, found.m / training.accumulate])
        inside = training.objective.refine_steps
        progress.tokens += rows * length
        progress.positions += rows * positions * (1 + (inside + 2 if inside else 0))
        return found

    def validate(self, *, advance: bool) -> dict[str, Any]:
        """Score the held-out texts by length, and move the frontier if it is mastered; the row for the curve."""
        training, progress, longest = self.training, self.progress, self.beginning.config.max_tokens
        lengths = sorted({n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n < longest} | {progress.frontier, longest})
        scores = {
            kind: {str(n): self._score(ids[:, :n]) for n in lengths} for kind, ids in self.held_out.items() if len(ids)
        }
        row: dict[str, Any] = self._place("validation")
        for kind, by_length in scores.items():
            row[kind] = {
                n: {"token_accuracy": s.token_accuracy, "exact_match": s.exact_match, "loss": s.loss}
                for n, s in by_length.items()
            }
        progress.validation = row
        if advance:
            seen = [by_length[str(progress.frontier)].token_accuracy for by_length in scores.values()]
            accuracy = self.processes.mean(torch.tensor(sum(seen) / len(seen), dtype=torch.float64)).item()
            there = progress.step - progress.frontier_step
            frontier = training.curriculum.advance(progress.frontier, accuracy, there, longest)
            if frontier != progress.frontier:
                progress.frontier, progress.frontier_step = frontier, progress.step
        return row

    def _score(self, target_ids: Tensor) -> LengthScore:
        e, m = written(self.beginning, self.lm, target_ids)
        return score(self.lm, self.beginning.config.laid_out, e, m, target_ids)

    def _place(self, kind: str) -> dict[str, Any]:
        p = self.progress
        return {"kind": kind, "step": p.step, "tokens": p.tokens, "positions": p.positions, "frontier": p.frontier}

    def row(self, seen: dict[str, Tensor | float]) -> dict[str, Any]:
        """A step's row for the curve."""
        numbers = {name: value.item() if isinstance(value, Tensor) else value for name, value in seen.items()}
        return self._place("step") | numbers | {"seconds": round(self.progress.seconds, 3)}

    def agreed(self, ends: bool) -> bool:
        """Whether any process wants to end."""
        return ends if self.processes.count == 1 else bool(self.processes.mean(torch.tensor(float(ends))) > 0)

    def encoder(self) -> Encoder:
        """The encoder as far as it is trained."""
        p = self.progress
        seen = {
            "step": p.step,
            "tokens": p.tokens,
            "positions": p.positions,
            "seconds": round(p.seconds, 1),
            "frontier": p.frontier,
            "validation": p.validation,
            "settings": {k: v for k, v in self.settings.items() if k != "encoder"},
            "versions": library_versions(),
        }
        begun = {"begun_at": self.beginning.training} if self.beginning.training.get("step") else {}
        return replace(self.beginning, training=self.beginning.training | seen | begun)


def _copied(encoder: Encoder, lm: FrozenLM) -> EncoderNetwork:
    """A copy of an encoder's network on the model's device, so that training leaves the encoder as it is."""
    network = EncoderNetwork(encoder.config, encoder.network.width, encoder.network.hidden_width)
    network.load_state_dict(encoder.network.state_dict())
    return network.to(lm.device)


def _adamw(network: EncoderNetwork, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW with decay on what is multiplied with features, and none on biases, scales, norms and the start."""
    decayed = [p for p in network.parameters() if p.ndim > 1 and p is not network.log_scale]
    rest = [p for p in network.parameters() if p.ndim <= 1 or p is network.log_scale]
    groups = [
        {"params": decayed, "weight_decay": schedule.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.lr, betas=schedule.betas)


def _refusal(before: dict[str, Any], now: dict[str, Any], step: int) -> str | None:
    """Why a checkpoint is not gone on with, or None. More steps may be asked for until the learning rate falls."""
    then, asked = before["training"], now["training"]
    different = [key for key in now if key != "training" and before.get(key) != now[key]]
    different += [key for key in asked if key != "steps" and then.get(key) != asked[key]]
    if different:
        return f"its training had other settings ({', '.join(different)})"
    if then["steps"] != asked["steps"]:
        schedule = asked["schedule"]
        constant_until = (1 - schedule["decay_share"]) * min(then["steps"], asked["steps"])
        if schedule["decay"] != "end" or step > constant_until:
            return f"its learning rate already falls towards step {then['steps']}: the steps cannot be changed any more"
    return None


def _seed(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
