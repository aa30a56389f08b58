"""The loop that moves proto-tokens: measure, keep the best, step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arrangements import Layout
from ..lm.frozen import FrozenLM
from .bank import Bank
from .checkpointing import checkpointed
from .given import Regulariser
from .memory import Passes, even_parts, plan_passes
from .objective import GradientSum, Scores, cross_entropy
from .recipes import FitConfig
from .scoreboard import MET, RUNNING, STOP_REASONS, ScoreBoard
from .trace import TraceRecorder

_CHECK_EVERY_ON_A_GPU = 4


@dataclass(frozen=True)
class FitProgress:
    """How a fit stands, over the best restart of every text.

    Attributes:
        step: optimiser steps taken.
        max_steps: the step budget.
        texts_done: texts that met the stopping rule or have no restart left.
        texts: texts in the batch.
        loss: mean of the lowest losses so far, in nats per token.
        token_accuracy: mean of the highest token accuracies so far.
        token_positions: positions passed forward so far.
        seconds: wall time so far.
    """

    step: int
    max_steps: int
    texts_done: int
    texts: int
    loss: float
    token_accuracy: float
    token_positions: int
    seconds: float


@dataclass(frozen=True, eq=False)
class DescentResult:
    """What the descent reached for one text, before it is scored once more.

    Attributes:
        e: e-tokens of the kept restart, (K, D).
        m: its m-token, (D,).
        steps: optimiser steps taken by the text's longest restart.
        loss_history: loss of the kept restart at each evaluation, nats per token, on the CPU.
        accuracy_history: its token accuracy at each evaluation, on the CPU.
        token_positions: input positions passed forward for this text.
        backward_positions: input positions passed backward for this text.
        seconds: wall time from the start of the descent until the text was done.
        stop_reason: see `FitResult`.
    """

    e: Tensor
    m: Tensor
    steps: int
    loss_history: Tensor
    accuracy_history: Tensor
    token_positions: int
    backward_positions: int
    seconds: float
    stop_reason: str


class Descent:
    """The one loop that moves proto-tokens.

    Args:
        lm: the frozen model.
        layout: the arrangement for this length.
        fixed: fixed vectors of all rows, (F, D), or of each, (R, F, D).
        target_ids: every row's target, (R, T): text by text, and for each its restarts.
        e: bank of e-tokens, S = K.
        m: bank of m-tokens, S = 1.
        group_of: group of each text, int64, (B,); texts that share no vector are groups of their own.
        config: the recipe.
        regulariser: an auxiliary loss on the vectors, or None.
        passes: how rows pass through the model; None: as memory allows. A step is the same but for rounding.
        trace: keeps what every evaluation decodes, or None.
    """

    def __init__(
        self,
        lm: FrozenLM,
        layout: Layout,
        fixed: Tensor,
        target_ids: Tensor,
        e: Bank,
        m: Bank,
        group_of: Tensor,
        config: FitConfig,
        regulariser: Regulariser | None = None,
        *,
        passes: Passes | None = None,
        trace: TraceRecorder | None = None,
    ) -> None:
        self.lm, self.layout, self.fixed, self.config = lm, layout, fixed, config
        self.e, self.m, self.regulariser = e, m, regulariser
        self.passes = plan_passes(lm, layout, len(target_ids), passes or Passes())
        self._trained = [bank for bank in (e, m) if bank.trained]
        n_texts, restarts = len(group_of), config.restarts
        self.text_of = torch.arange(n_texts).repeat_interleave(restarts)  # (R,)
        self.group_of = group_of.tolist()
        candidate_of = group_of[self.text_of] * restarts + torch.arange(restarts).repeat(n_texts)  # (R,)
        self.candidate_of = candidate_of.tolist()
        self.board = ScoreBoard(candidate_of.to(lm.device), config.stop, regulariser.steps if regulariser else 0)
        self.target_ids = target_ids.to(lm.device)
        self.trace = trace
        self._began = time.perf_counter()
        self._forward = torch.zeros(n_texts, dtype=torch.long)
        self._backward = torch.zeros(n_texts, dtype=torch.long)
        self._steps = [0] * n_texts
        self._seconds: list[float | None] = [None] * n_texts
        self._text_of_on_device = self.text_of.to(lm.device)
        if regulariser is not None:  # all rows' vectors at the last step that they took
            self._standing = (e.rows().detach(), m.rows().detach())
        self._select(torch.arange(len(self.text_of)))

    def run(
        self,
        progress: Callable[[FitProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[DescentResult]:
        """Descend until every group is done, the budget is spent, or `should_stop` says so."""
        with checkpointed(self.lm) if self.passes.checkpointing else nullcontext():
            return self._results("interrupted" if self._descend(progress, should_stop) else "steps")

    def _descend(self, progress: Callable[[FitProgress], None] | None, should_stop: Callable[[], bool] | None) -> bool:
        """The loop; says whether `should_stop` ended it."""
        stop = self.config.stop
        check_every = stop.check_every or (1 if self.lm.device.type == "cpu" else _CHECK_EVERY_ON_A_GPU)
        for step in range(stop.max_steps + 1):
            last = step == stop.max_steps
            loss, gradients = self._measure(step, will_step=not last)
            is_check = last or step % check_every == 0
            staying = self._staying() if is_check else self.active
            will_step = not last and len(staying) > 0
            stopped = will_step and should_stop is not None and should_stop()  # asked before progress is told
            if progress and is_check:
                progress(self._progress(step))
            if stopped or not will_step:
                return stopped
            self._step(loss, gradients, staying, step)
            if len(staying) < len(self.active):
                self._drop_to(staying)
        return False

    def _measure(self, step: int, *, will_step: bool) -> tuple[Tensor, GradientSum]:
        """Score every row, micro-batch by micro-batch: the loss of each token, (R, T), in nats, and the gradients.

        The last micro-batch is not passed backward yet: whether a step follows is decided after the scores. At most one
        graph is held at a time.
        """
        gradients = GradientSum([bank.values for bank in self._trained])
        losses, margins, passed = [], [], None
        rivals: list[Tensor] = []
        for part, positions in zip(self._parts, self._positions, strict=True):
            if passed is not None and will_step:
                gradients.settle()
                self._backward += passed
            gradients.forget()
            scores = self._pass(part, gradients)
            losses.append(scores.loss)
            margins.append(scores.margin)
            if scores.rival_ids is not None:
                rivals.append(scores.rival_ids)
            self._forward += positions
            passed = positions
        loss, margin = torch.cat(losses), torch.cat(margins)
        improved = self.board.update(self._active_on_device, loss, margin, step)
        if self.trace is not None:
            self.trace.record(step, self.active, self.target_ids, torch.cat(rivals), margin, loss)
        for bank in (self.e, self.m):
            bank.remember(improved)
        return loss, gradients

    def _pass(self, part: slice, gradients: GradientSum) -> Scores:
        """Pass a micro-batch through the model, score it, and leave its graph with `gradients`."""
        fixed = self.fixed[part] if self.fixed.ndim == 3 else self.fixed
        inputs_embeds = self.layout.inputs_embeds(self.e.rows(part), self.m.rows(part)[:, 0], fixed)  # (R, L, D)
        logits = self.lm.logits(inputs_embeds, self.layout.read_positions())  # (R, T, V)
        scores = cross_entropy(logits.detach(), self.target_ids[part], rivals=self.trace is not None)
        gradients.wait(logits, scores.logit_gradient)
        return scores

    def _step(self, loss: Tensor, gradients: GradientSum, staying: Tensor, step: int) -> None:
        # The mean over a text's tokens; the factor stands here, where it costs a pass over vectors, not over logits.
        share = 1 / self.layout.length
        sums = gradients.settle()
        for bank, gradient, auxiliary in zip(self._trained, sums, self._auxiliary_gradients(), strict=True):
            mean = gradient * share
            rates = self._rates(loss, step, by_block=bank is self.e)
            bank.step(mean if auxiliary is None else mean + auxiliary, self.config.optimiser, rates)
        self._backward += self._positions[-1]
        for text in set(self.text_of[staying].tolist()):
            self._steps[text] += 1

    def _rates(self, loss: Tensor, step: int, *, by_block: bool) -> Tensor:
        """Learning rate of each row, (R,), or of each of its blocks, (R, K), from its tokens' loss (R, T), nats."""
        by_block = by_block and self.layout.block_length is not None
        loss_nats = self.layout.block_means(loss) if by_block else loss.mean(-1)
        if self.regulariser is not None and step < self.regulariser.steps:
            loss_nats = torch.full_like(loss_nats, torch.inf)  # not annealed yet
        least = self.config.optimiser.least_rate if by_block else 0.0
        return self.config.optimiser.rates(loss_nats, self.lm.embedding_statistics.std, least)

    def _auxiliary_gradients(self) -> Sequence[Tensor | None]:
        """The regulariser's gradient at the vectors of each trained bank; None where it has none."""
        nothing = [None] * len(self._trained)
        if self.regulariser is None:
            return nothing
        pairs = zip(self._standing, (self.e.rows(), self.m.rows()), strict=True)
        e, m = (standing.index_copy(0, self._active_on_device, moving) for standing, moving in pairs)
        self._standing = (e.detach(), m.detach())
        loss = self.regulariser.loss(e, m[:, 0], self._text_of_on_device)
        if not loss.requires_grad:  # all that it depends on is held fixed
            return nothing
        return torch.autograd.grad(loss, [bank.values for bank in self._trained], allow_unused=True)

    def _staying(self) -> Tensor:
        """The numbers of the rows that continue: their candidate is running and their group not done. Synchronises."""
        states, restarts = self.board.status(), self.config.restarts
        done = {candidate // restarts for candidate, state in enumerate(states) if state == MET}
        stays = [states[self.candidate_of[r]] == RUNNING and self.candidate_of[r] // restarts not in done
                 for r in self.active.tolist()]  # fmt: skip
        staying = self.active[torch.tensor(stays, dtype=torch.bool)]
        running = set(self.text_of[staying].tolist())
        for text, seconds in enumerate(self._seconds):
            if text not in running and seconds is None:
                self._seconds[text] = time.perf_counter() - self._began
        return staying

    def _drop_to(self, staying: Tensor) -> None:
        kept = torch.isin(self.active, staying).nonzero().squeeze(1).to(self.lm.device)  # among the active rows
        for bank in (self.e, self.m):
            bank.keep(kept)
        self.target_ids = self.target_ids[kept]
        if self.fixed.ndim == 3:
            self.fixed = self.fixed[kept]
        self._select(staying)

    def _select(self, active: Tensor) -> None:
        self.active = active
        self._active_on_device = active.to(self.lm.device)
        texts, n_positions = self.text_of[active], len(self.layout.slots)
        self._parts = even_parts(len(active), self.passes.rows_at_once or len(active))
        self._positions = [
            torch.bincount(texts[part], minlength=len(self._steps)) * n_positions for part in self._parts
        ]

    def _progress(self, step: int) -> FitProgress:
        loss, accuracy = (t.view(-1, self.config.restarts) for t in self.board.means())
        return FitProgress(
            step=step,
            max_steps=self.config.stop.max_steps,
            texts_done=sum(s is not None for s in self._seconds),
            texts=len(self._seconds),
            loss=loss.amin(1).mean().item(),
            token_accuracy=accuracy.amax(1).mean().item(),
            token_positions=int(self._forward.sum()),
            seconds=time.perf_counter() - self._began,
        )

    def _results(self, unfinished: str) -> list[DescentResult]:
        states, ranking = self.board.status(), self.board.ranking()
        losses, accuracies = self.board.histories()
        restarts, results, kept_restarts = self.config.restarts, [], []
        for text, group in enumerate(self.group_of):
            candidates = range(group * restarts, (group + 1) * restarts)
            kept = max(candidates, key=lambda candidate: ranking[candidate])
            kept_restarts.append(kept - candidates.start)
            row = text * restarts + kept_restarts[-1]
            evaluated = ~losses[:, row].isnan() | ~accuracies[:, row].isnan()
            results.append(
                DescentResult(
                    e=self.e.best(row),
                    m=self.m.best(row)[0],
                    steps=self._steps[text],
                    loss_history=losses[evaluated, row],
                    accuracy_history=accuracies[evaluated, row],
                    token_positions=int(self._forward[text]),
                    backward_positions=int(self._backward[text]),
                    seconds=self._seconds[text] or time.perf_counter() - self._began,
                    stop_reason=STOP_REASONS.get(states[kept], unfinished),
                )
            )
        if self.trace is not None:
            self.trace.finish(kept_restarts, [result.stop_reason for result in results])
        return results
