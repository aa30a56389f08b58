"""Passes of a model behind a text that it has read: several tokens at once, and a cache that can be cut back."""

from __future__ import annotations

import time
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..lm.frozen import FrozenLM
from .masks import attention_mask, unknown_layers
from .states import states_kept

_ROUNDING = 1e-3  # of the largest logit: what unequal kernels make of equal inputs in float32
_PROBE_TOKENS = 6
_MULTIPLE = 4  # of rows: kernels for other numbers of them may take twice as long
_MANY = 24
_TIMED_PASSES = 3


class Reading:
    """A text that the model has read, as its cache holds it.

    Args:
        lm: the frozen model.
        ids: the text, int64, (L,), L at least 1.

    Attributes:
        length: L, tokens in the cache.
        state: what the head reads behind its last token, float32, (H,).
        logits: the logits behind it, float32, (V,).
    """

    def __init__(self, lm: FrozenLM, ids: Tensor) -> None:
        from transformers import DynamicCache

        self.lm, self.length, self._padding = lm, len(ids), 0
        self.cache: Any = DynamicCache()  # without the model's config, so that no layer drops what is behind a window
        logits, states = self._pass(lm.inputs_of_ids(ids.unsqueeze(0)), self.length, slice(-1, None))
        self.logits, self.state = logits[-1], states[-1]

    def extend(
        self, inputs_embeds: Tensor, places: Tensor, visible: Tensor, n_read: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """One pass of further inputs, all of which see the text.

        Args:
            inputs_embeds: (Q, D).
            places: of each input, counted from the end of the text, int64, (Q,).
            visible: which of the inputs each attends to, bool, (Q, Q).
            n_read: how many of the first have their logits read; None: all.

        Returns:
            Logits (n_read, V), and the states that the head reads (Q, H), float32.
        """
        device, n_inputs = self.lm.device, len(places)
        self._padding = _padding(n_inputs)
        n_read = n_inputs if n_read is None else n_read
        last = self.length + int(places.max()) + 1
        pad = torch.nn.functional.pad
        inputs_embeds, places = pad(inputs_embeds, (0, 0, 0, self._padding)), pad(places.to(device), (0, self._padding))
        visible = pad(visible.to(device), (0, self._padding) * 2) | torch.eye(
            len(places), dtype=torch.bool, device=device
        )
        positions = (places + self.length).unsqueeze(0)
        text = torch.ones(len(places), self.length, dtype=torch.bool, device=device)
        seen = torch.cat([text, visible], 1).unsqueeze(0)  # (1, Q, L + Q)
        inputs: dict[str, Any] = self.lm.inputs_of_vectors(inputs_embeds.unsqueeze(0))
        inputs["attention_mask"] = attention_mask(self.lm, seen, positions, self.length)
        inputs["position_ids"] = positions
        logits, states = self._pass(inputs, last, slice(n_read + _padding(n_read)))
        return logits[:n_read], states[:n_inputs]

    def keep(self, rows: list[int], n_inputs: int) -> None:
        """Keep some of the inputs of the last pass in the cache, in this order, and forget the others.

        Args:
            rows: which.
            n_inputs: Q, how many there were.
        """
        n = len(rows)
        if rows != list(range(n)):
            index = torch.tensor(rows, device=self.lm.device) + self.length
            for layer in self.cache.layers:
                for values in (layer.keys, layer.values):
                    values[..., self.length : self.length + n, :] = values[..., index.to(values.device), :]
        dropped = n_inputs + self._padding - n
        if dropped:  # the first versions of transformers 5 take 0 for a length, and forget the text
            self.cache.crop(-dropped)
        self.length += n

    def _pass(self, inputs: dict[str, Any], length: int, read: slice) -> tuple[Tensor, Tensor]:
        with states_kept(self.lm, read) as states:
            outputs = self.lm.run(inputs, length, past_key_values=self.cache, use_cache=True)
        device = self.lm.device
        return outputs.logits[0].to(device).float(), states[0][0].to(device).float()


def _padding(n_rows: int) -> int:
    """Rows that are added to some, so that they are multiplied fast: none to a single one."""
    return -n_rows % _MULTIPLE if n_rows > 1 else 0


def rounding(lm: FrozenLM, logits: Tensor) -> float:
    """How far apart logits of the same inputs may be in passes of other shapes: a share of the largest of them."""
    return max(_ROUNDING, 8 * torch.finfo(lm.dtype).eps) * logits.abs().max().item()


_verifies: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Models that were probed, and what is wrong with them: nothing where they can verify."""


def check_verifies(lm: FrozenLM) -> None:
    """Refuse a model that cannot verify several drafts at once behind a cache.

    A tree of tokens is passed once behind a text, and its logits are compared with those of ordinary passes. It is
    probed once per model.

    Raises:
        InputError: the model keeps no cache that can be cut back, or its attention does not follow a mask.
    """
    if lm.model not in _verifies:
        with torch.no_grad():
            _verifies[lm.model] = _problem(lm)
    if problem := _verifies[lm.model]:
        raise InputError(f"{lm.identity.name} cannot verify drafts: {problem}; generate without a drafter")


def _problem(lm: FrozenLM) -> str:
    if lm.per_layer_row is not None:
        return "its layers look tokens up by their ids, and learned inputs have none"
    if kinds := unknown_layers(lm):
        return f"its layers are of the kind {kinds[0]}, for which there is no mask of drafts"
    if any(table.dtype == torch.bool and table.ndim == 4 for table in lm.model.buffers()):
        return "its layers hold a mask of their own, which counts positions in the cache and not in the text"
    ids = torch.arange(2 * _PROBE_TOKENS) % lm.vocabulary
    text, chain = ids[:_PROBE_TOKENS], ids[_PROBE_TOKENS : _PROBE_TOKENS + 3]
    order = [0, 0, 1, 2]  # of the chain; the first stands there twice, and the second copy leads on
    visible = torch.eye(4, dtype=torch.bool)
    visible[2, 1] = visible[3, 1] = visible[3, 2] = True
    try:
        reading = Reading(lm, text)
        logits, _ = reading.extend(lm.embed(chain[order]), torch.tensor(order), visible)
        reading.keep([1, 2], 4)
        again, _ = reading.extend(lm.embed(chain[2:]), torch.zeros(1, dtype=torch.long), visible[:1, :1])
    except (InputError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # whatever a model's own code raises
        return "it keeps no cache that can be cut back, or takes no mask and places beside it"
    plain = lm.next_token_logits(ids[: _PROBE_TOKENS + 3])[_PROBE_TOKENS:]  # (3, V)
    if not torch.cat([logits[1:] - plain, again - plain[2:]]).abs().amax() <= rounding(lm, plain):  # nor a NaN
        return "behind a cache its outputs are not those of an ordinary pass, or its attention does not follow a mask"
    return ""


_prices: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], float]] = WeakKeyDictionary()


@torch.no_grad()
def position_cost(lm: FrozenLM) -> float:
    """What one more input position costs in a pass, as a share of a pass of 8 positions: measured once.

    The best of a few passes of 8 positions and of 24, behind a short text. A pass of one position is no measure: a few
    positions are multiplied by other kernels than one, and may take twice as long, and many hardly longer than a few.
    """
    known = _prices.setdefault(lm.model, {})
    circumstances = (lm.dtype, str(lm.device), torch.get_num_threads())
    if circumstances not in known:
        many = _MANY if lm.max_positions is None else min(_MANY, lm.max_positions // 2)
        few = max(1, many // 3)
        reading = Reading(lm, torch.zeros(few, dtype=torch.long))
        seconds = [min(_seconds(reading, n) for _ in range(_TIMED_PASSES)) for n in (few, many)]
        known[circumstances] = max(0.0, (seconds[1] / seconds[0] - 1) / max(1, many - few))
    return known[circumstances]


def _seconds(reading: Reading, n_inputs: int) -> float:
    inputs_embeds = reading.lm.embed(torch.zeros(n_inputs, dtype=torch.long))
    began = time.perf_counter()
    logits, _ = reading.extend(inputs_embeds, torch.arange(n_inputs), torch.ones(n_inputs, n_inputs).tril().bool())
    logits.argmax(-1).tolist()  # waits for the device
    seconds = time.perf_counter() - began
    reading.keep([], n_inputs)
    return seconds
