"""The descent over proto-tokens: the objective, banks of vectors with their optimiser, and the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arrangements import Layout
from ..lm.frozen import FrozenLM
from .memory import even_parts, rows_that_fit
from .recipes import AdamW, FitConfig
from .scoreboard import MET, NONFINITE, RUNNING, ScoreBoard

_CHECK_EVERY_ON_A_GPU = 4


@dataclass(frozen=True, eq=False)
class Scores:
    """One evaluation of the objective.

    Attributes:
        loss: cross-entropy of each token, in nats, (R, T).
        margin: each target's logit minus the best other logit, (R, T); a token is right where it is above 0.
        logit_gradient: derivative of the summed loss with respect to the logits, (R, T, V).
    """

    loss: Tensor
    margin: Tensor
    logit_gradient: Tensor


@torch.no_grad()
def cross_entropy(logits: Tensor, target_ids: Tensor) -> Scores:
    """Score logits (R, T, V), float32, against target ids (R, T): eq. 1 of the paper, token by token.

    loss = -log softmax(logits)[target]; its gradient is softmax(logits) - onehot(target). All is done in one tensor of
    the logits' size, since passes over the vocabulary are what a step costs beside the network.
    """
    target = target_ids.unsqueeze(-1)
    log_p = logits.log_softmax(-1)
    own = log_p.gather(-1, target)  # (R, T, 1)
    rival = log_p.scatter_(-1, target, float("-inf")).amax(-1)
    p = log_p.scatter_(-1, target, own).exp_()
    gradient = p.scatter_add_(-1, target, torch.full_like(own, -1.0))
    own = own.squeeze(-1)
    return Scores(-own, own - rival, gradient)


class GradientSum:
    """The gradients of a summed loss at some vectors, added up over micro-batches that pass one after another.

    Of the graphs at most one is held at a time.

    Args:
        vectors: the vectors, tensors that require gradients.
    """

    def __init__(self, vectors: Sequence[Tensor]) -> None:
        self._vectors = vectors
        self._sums: list[Tensor] = []
        self._waiting: tuple[Tensor, Tensor] | None = None

    def wait(self, logits: Tensor, logit_gradient: Tensor) -> None:
        """Hold a micro-batch's logits (R, T, V) and the loss's derivative with respect to them until `settle`."""
        self._waiting = (logits, logit_gradient)

    def settle(self) -> Sequence[Tensor]:
        """Pass what waits backward, free its graph, and return the sums so far, one per vector tensor."""
        if self._waiting is not None:
            logits, logit_gradient = self._waiting
            self._waiting = None
            gradients = torch.autograd.grad(logits, self._vectors, logit_gradient)
            if self._sums:
                for total, gradient in zip(self._sums, gradients, strict=True):
                    total.add_(gradient)
            else:
                self._sums = list(gradients)
        return self._sums


class Bank:
    """Vectors under descent, each with its own optimiser state, and which row of the batch uses which vector.

    Args:
        values: start of the vectors, float32, (P, S, D).
        of: index of each row's vectors, int64, (R,); rows that share vectors have the same index.
        trained: whether the vectors move.
        axes: orthonormal axes along which Adam's means are taken, columns, (D, D); None: the coordinates.
        moments: where the second moments of the gradients, each of length 1, are added up, (D, D), or None.
    """

    def __init__(
        self, values: Tensor, of: Tensor, *, trained: bool, axes: Tensor | None = None, moments: Tensor | None = None
    ) -> None:
        self.values = values.detach().clone().requires_grad_(trained)
        self.of = of
        self.trained = trained
        self._axes, self._moments = axes, moments
        self._best = values.detach().clone()
        self._of_at_first = of
        self._ids = torch.arange(values.shape[0], device=values.device)
        self._mean = torch.zeros_like(values)
        self._square = torch.zeros_like(values)
        self._steps = 0

    def rows(self, part: slice = slice(None)) -> Tensor:
        """The vectors of the rows, or of a part of them, (R, S, D)."""
        return self.values[self.of[part]]

    def best(self, row: int) -> Tensor:
        """The best-scored vectors of a row, numbered as at first, (S, D)."""
        return self._best[self._of_at_first[row]]

    @torch.no_grad()
    def remember(self, improved: Tensor) -> None:
        """Take the vectors of rows marked in `improved`, bool (R,), as their best; sharers improve together."""
        if self.trained:
            marked = torch.zeros_like(self._ids).index_add_(0, self.of, improved.long()) > 0  # (P,)
            self._best[self._ids] = torch.where(marked[:, None, None], self.values, self._best[self._ids])

    @torch.no_grad()
    def step(self, gradient: Tensor, adamw: AdamW, row_lr: Tensor) -> None:
        """One AdamW step (Loshchilov & Hutter, 2019, algorithm 2).

        Args:
            gradient: of the mean loss, (P, S, D).
            adamw: the settings; its `lr` is not read.
            row_lr: learning rate of each row, (R,); rows that share a vector move it at their mean rate.
        """
        beta1, beta2 = adamw.betas
        users = torch.zeros_like(self._ids, dtype=row_lr.dtype).index_add_(0, self.of, torch.ones_like(row_lr))
        lr = torch.zeros_like(users).index_add_(0, self.of, row_lr).div_(users)[:, None, None]  # (P, 1, 1)
        self._steps += 1
        if self._moments is not None:
            unit = torch.nn.functional.normalize(gradient, dim=-1).flatten(0, 1)  # (P S, D)
            unit = unit.nan_to_num(nan=0.0)  # a vector that is lost counts for nothing
            self._moments.addmm_(unit.T, unit)
        if self._axes is not None:
            gradient = gradient @ self._axes
        self._mean.lerp_(gradient, 1 - beta1)
        self._square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (self._square / (1 - beta2**self._steps)).sqrt_().add_(adamw.eps)
        change = (self._mean / scale).div_(1 - beta1**self._steps)
        self.values.mul_(1 - lr * adamw.weight_decay)
        self.values.sub_(lr * (change if self._axes is None else change @ self._axes.T))

    @torch.no_grad()
    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these, int64, and the vectors that no row uses any more."""
        used, self.of = self.of[rows].unique(return_inverse=True)
        self.values = self.values[used].detach().requires_grad_(self.trained)
        self._ids, self._mean, self._square = self._ids[used], self._mean[used], self._square[used]


@dataclass(frozen=True, eq=False)
class Regulariser:
    """A further loss on the vectors of a batch, descended together with the cross-entropy.

    What is kept and who is done is judged by the tokens alone, as ever, but only when the further loss has been at work
    for some steps. Until then the learning rate is not tied to the cross-entropy either: where that is small already,
    the further loss would hardly move anything.

    Attributes:
        loss: e-tokens (R, K, D), m-tokens (R, D) and the number of each row's text, int64, (R,), all on the model's
            device -> the sum over the rows of what is added to their `loss`, nats per token, (), by differentiable
            operations. A row is one restart of a text; rows that are done stand still.
        steps: no text is done before that many steps, and the best evaluation from there on is kept.
    """

    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    steps: int = 0


@dataclass(frozen=True)
class FitProgress:
    """How a fit stands, over the best attempt at every text.

    Attributes:
        step: optimiser steps taken.
        max_steps: the step budget.
        texts_done: texts that met the stopping rule or have no attempt left.
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
class Outcome:
    """What the descent found for one text, before it is scored once more.

    Attributes:
        e: e-tokens of the kept attempt, (K, D).
        m: its m-token, (D,).
        steps: optimiser steps taken by the text's longest restart.
        loss_history: loss of the kept attempt at each evaluation, nats per token, on the CPU.
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
    """The one loop that moves proto-tokens: measure, keep the best, step.

    Args:
        lm: the frozen model.
        layout: the arrangement for this length.
        fixed: fixed vectors, (F, D), or each row's own, (R, F, D).
        target_ids: every row's target, (R, T): text by text, and for each its restarts.
        e: bank of e-tokens, S = K.
        m: bank of m-tokens, S = 1.
        group_of: group of each text, int64, (B,); texts that share no vector are groups of their own.
        config: the recipe.
        regulariser: a further loss on the vectors, or None.
        rows_at_once: rows that pass through the model together; None: as many as memory holds. The gradients of such
            micro-batches are added up, so that a step is the same but for rounding.
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
        rows_at_once: int | None = None,
    ) -> None:
        self.lm, self.layout, self.fixed, self.config = lm, layout, fixed, config
        self.e, self.m, self.regulariser = e, m, regulariser
        self._trained = [bank for bank in (e, m) if bank.trained]
        self._rows_at_once = rows_at_once or rows_that_fit(lm, layout, len(target_ids))
        self.lr = config.optimiser.lr * (lm.embedding_statistics.std if config.optimiser.relative else 1.0)
        texts, restarts = len(group_of), config.restarts
        self.text_of = torch.arange(texts).repeat_interleave(restarts)  # (R,)
        self.group_of = group_of.tolist()
        attempt_of = group_of[self.text_of] * restarts + torch.arange(restarts).repeat(texts)  # (R,)
        self.attempt_of = attempt_of.tolist()
        self.board = ScoreBoard(attempt_of.to(lm.device), config.stop, regulariser.steps if regulariser else 0)
        self.target_ids = target_ids.to(lm.device)
        self._began = time.perf_counter()
        self._forward = torch.zeros(texts, dtype=torch.long)
        self._backward = torch.zeros(texts, dtype=torch.long)
        self._steps = [0] * texts
        self._seconds: list[float | None] = [None] * texts
        self._texts_there = self.text_of.to(lm.device)
        if regulariser is not None:  # all rows' vectors at the last step that they took
            self._standing = (e.rows().detach(), m.rows().detach())
        self._select(torch.arange(len(self.text_of)))

    def run(
        self,
        progress: Callable[[FitProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Outcome]:
        """Descend until every group is done, the budget is spent, or `should_stop` says so."""
        stop, interrupted = self.config.stop, False
        check_every = stop.check_every or (1 if self.lm.device.type == "cpu" else _CHECK_EVERY_ON_A_GPU)
        for step in range(stop.max_steps + 1):
            last = step == stop.max_steps
            loss, gradients = self._measure(step, will_step=not last)
            look = last or step % check_every == 0
            staying = self._staying(step) if look else self.active
            if progress and look:
                progress(self._progress(step))
            if last or len(staying) == 0:
                break
            if should_stop and should_stop():
                interrupted = True
                break
            self._step(loss, gradients, staying, step)
            if len(staying) < len(self.active):
                self._drop_to(staying)
        return self._outcomes("interrupted" if interrupted else "steps")

    def _measure(self, step: int, *, will_step: bool) -> tuple[Tensor, GradientSum]:
        """Score every row: its loss (R,), in nats per token, and the gradients, all but the last micro-batch's taken.

        The last backward pass waits for the decision whether a step follows, so that an undivided batch makes none in
        vain.
        """
        gradients = GradientSum([bank.values for bank in self._trained])
        losses, margins, passed = [], [], None
        for part, positions in zip(self._parts, self._positions, strict=True):
            if passed is not None and will_step:
                gradients.settle()
                self._backward += passed
            scores = self._pass(part, gradients)
            losses.append(scores.loss)
            margins.append(scores.margin)
            self._forward += positions
            passed = positions
        loss = torch.cat(losses)
        improved = self.board.update(self._active_there, loss, torch.cat(margins), step)
        for bank in (self.e, self.m):
            bank.remember(improved)
        return loss.mean(-1), gradients

    def _pass(self, part: slice, gradients: GradientSum) -> Scores:
        """Pass a micro-batch through the model, score it, and leave its graph with `gradients`."""
        fixed = self.fixed[part] if self.fixed.ndim == 3 else self.fixed
        inputs_embeds = self.layout.inputs_embeds(self.e.rows(part), self.m.rows(part)[:, 0], fixed)  # (R, L, D)
        logits = self.lm.logits(inputs_embeds, self.layout.read_positions())  # (R, T, V)
        scores = cross_entropy(logits.detach(), self.target_ids[part])
        gradients.wait(logits, scores.logit_gradient)
        return scores

    def _step(self, loss: Tensor, gradients: GradientSum, staying: Tensor, step: int) -> None:
        # The mean over a text's tokens; the factor stands here, where it costs a pass over vectors, not over logits.
        share = 1 / self.layout.length
        row_lr = self._learning_rates(loss, step)
        whole = gradients.settle()
        further = self._further_gradients(self._trained)
        for bank, gradient, more in zip(self._trained, whole, further, strict=True):
            bank.step(gradient * share if more is None else gradient * share + more, self.config.optimiser, row_lr)
        self._backward += self._positions[-1]
        for text in set(self.text_of[staying].tolist()):
            self._steps[text] += 1

    def _further_gradients(self, banks: list[Bank]) -> Sequence[Tensor | None]:
        """The regulariser's gradient at the vectors of each bank; None where it has none."""
        if self.regulariser is None:
            return [None] * len(banks)
        own = zip(self._standing, (self.e.rows(), self.m.rows()), strict=True)
        e, m = (standing.index_copy(0, self._active_there, moving) for standing, moving in own)
        self._standing = (e.detach(), m.detach())
        loss = self.regulariser.loss(e, m[:, 0], self._texts_there)
        if not loss.requires_grad:  # all that it depends on is held fixed
            return [None] * len(banks)
        return torch.autograd.grad(loss, [bank.values for bank in banks], allow_unused=True)

    def _learning_rates(self, loss: Tensor, step: int) -> Tensor:
        """Learning rate of each row, (R,), from its loss (R,), in nats per token."""
        held = self.regulariser is not None and step < self.regulariser.steps
        bound = 0.0 if held else self.config.optimiser.anneal_below_nats
        return self.lr * ((loss / bound).clamp(max=1).sqrt() if bound else torch.ones_like(loss))

    def _staying(self, step: int) -> Tensor:
        """Rows, by number, that go on: their attempt is alive and their group is not done. Waits for the device."""
        states, restarts = self.board.status(), self.config.restarts
        done = {a // restarts for a, state in enumerate(states) if state == MET}
        stays = [states[self.attempt_of[r]] == RUNNING and self.attempt_of[r] // restarts not in done
                 for r in self.active.tolist()]  # fmt: skip
        staying = self.active[torch.tensor(stays, dtype=torch.bool)]
        running = set(self.text_of[staying].tolist())
        for text, seconds in enumerate(self._seconds):
            if text not in running and seconds is None:
                self._seconds[text] = time.perf_counter() - self._began
        return staying

    def _drop_to(self, staying: Tensor) -> None:
        kept = torch.isin(self.active, staying).nonzero().squeeze(1)  # positions among the active rows
        for bank in (self.e, self.m):
            bank.keep(kept.to(self.lm.device))
        self.target_ids = self.target_ids[kept.to(self.lm.device)]
        if self.fixed.ndim == 3:
            self.fixed = self.fixed[kept.to(self.lm.device)]
        self._select(staying)

    def _select(self, active: Tensor) -> None:
        self.active = active
        self._active_there = active.to(self.lm.device)
        texts, length = self.text_of[active], len(self.layout.slots)
        self._parts = even_parts(len(active), self._rows_at_once)
        self._positions = [torch.bincount(texts[part], minlength=len(self._steps)) * length for part in self._parts]

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

    def _outcomes(self, unfinished: str) -> list[Outcome]:
        states, ranking = self.board.status(), self.board.ranking()
        losses, accuracies = self.board.histories()
        restarts, outcomes = self.config.restarts, []
        for text, group in enumerate(self.group_of):
            attempts = range(group * restarts, (group + 1) * restarts)
            kept = max(attempts, key=lambda a: ranking[a])
            row = text * restarts + kept - attempts.start
            seen = ~losses[:, row].isnan() | ~accuracies[:, row].isnan()
            reason = {MET: "accuracy", RUNNING: unfinished}.get(states[kept])
            if reason is None:
                reason = "nonfinite" if states[kept] == NONFINITE else "plateau"
            outcomes.append(
                Outcome(
                    e=self.e.best(row),
                    m=self.m.best(row)[0],
                    steps=self._steps[text],
                    loss_history=losses[seen, row],
                    accuracy_history=accuracies[seen, row],
                    token_positions=int(self._forward[text]),
                    backward_positions=int(self._backward[text]),
                    seconds=self._seconds[text] or time.perf_counter() - self._began,
                    stop_reason=reason,
                )
            )
        return outcomes
