"""What a fit refuses before it begins: arguments of another kind, texts without room, a model that is not frozen."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arrangements import Layout
from ..errors import InputError
from ..lm.frozen import FrozenLM
from .given import Given
from .recipes import PRESETS, FitConfig


def check_arguments(lm: object, target_ids: object, config: object, given: object) -> None:
    """Refuse arguments of another type, and say what was probably meant.

    Raises:
        InputError: one is.
    """
    if not isinstance(lm, FrozenLM):
        raise InputError(f"lm is of type {type(lm).__name__}; it must be a FrozenLM: load_lm(name)")
    if not isinstance(target_ids, Tensor):
        is_ids = isinstance(target_ids, list | tuple) and target_ids and all(isinstance(i, int) for i in target_ids)
        meant = "torch.tensor(ids)" if is_ids else "lm.encode(text)"
        raise InputError(f"target_ids is of type {type(target_ids).__name__}; it must be a tensor: {meant}")
    if config is not None and not isinstance(config, FitConfig):
        name = config if isinstance(config, str) and config in PRESETS else "fast"
        shown = repr(config) if isinstance(config, str) else f"of type {type(config).__name__}"
        raise InputError(f"config is {shown}; it must be a FitConfig: preset({name!r})")
    if given is not None and not isinstance(given, Given):
        raise InputError(f"given is of type {type(given).__name__}; it must be a Given: Given(m=...)")


def check_texts(lm: FrozenLM, target_ids: Tensor, layout: Layout) -> None:
    """Refuse texts that the model or a layout has no room for, and a model that would not be scored alike twice.

    Raises:
        InputError: `target_ids` is not int64 ids of the model's vocabulary, (B, T), or needs too many positions; or see
            `FrozenLM.check_ready`.
    """
    check_shape(target_ids)
    if target_ids.dtype != torch.int64:
        raise InputError(f"target_ids is {target_ids.dtype}; it must be torch.int64")
    if target_ids.min() < 0 or target_ids.max() >= lm.vocabulary:
        raise InputError(
            f"token ids go from {target_ids.min()} to {target_ids.max()}, and those of {lm.identity.name} from 0 to "
            f"{lm.vocabulary - 1}; is the tokenizer another model's?"
        )
    check_room(lm, layout)
    lm.check_ready()


def check_shape(target_ids: Tensor) -> None:
    """Refuse ids that are not (B, T) with at least one token.

    Raises:
        InputError: they are not.
    """
    if target_ids.ndim != 2 or target_ids.numel() == 0:
        raise InputError(f"target_ids is {tuple(target_ids.shape)}; it must be (B, T) with at least one token")


def check_room(lm: FrozenLM, layout: Layout, remedy: str | None = None) -> None:
    """Refuse a layout that needs more positions than the model has, and say what helps.

    Raises:
        InputError: it does.
    """
    needed, bound = len(layout.slots), lm.max_positions
    if bound is not None and needed > bound:
        most = bound - needed + layout.length
        remedy = remedy or (f"shorten it to {most} tokens" if most > 0 else "use fewer e-tokens")
        raise InputError(
            f"a text of {layout.length} tokens needs {needed} positions, and {lm.identity.name} has {bound}; {remedy}"
        )
