"""Encoders of former versions, which had a longest text and no blocks, read as encoders of one block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..arrangements import blocks
from ..errors import InputError
from ..fitting.starter import Starter

_HEAD, _BODY = ["m", "e"], ["m"]
"""The arrangement whose input is that of one block."""


def is_former(config: Mapping[str, Any]) -> bool:
    """Whether a config is of a former version."""
    return "max_tokens" in config


def config_of_one_block(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a former config is called today: the longest text is the block.

    Raises:
        InputError: its vectors are not those of one block.
    """
    arrangement, e_tokens = config["arrangement"], config["e_tokens"]
    if e_tokens != 1 or [arrangement["head"], arrangement["body"]] != [_HEAD, _BODY]:
        raise InputError(
            f"an encoder of a former version, with {e_tokens} e-tokens in {arrangement['name']!r}; today's write one "
            "for each block of a text: train one (prototokens encoder train)"
        )
    kept = {name: config[name] for name in ("trunk", "width", "layers", "token_width", "hidden_layer", "m")}
    return kept | {"block_length": config["max_tokens"], "neighbours": 0}


def weights_of_one_block(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A former encoder's weights in today's shapes."""
    slots = "trunk.slots"
    return {name: t.flatten(0, 1) if name == slots and t.ndim == 3 else t for name, t in tensors.items()}


def start_of_one_block(starter: Starter | None, block_length: int) -> Starter | None:
    """A former encoder's learned start, for a text of one block."""
    return None if starter is None else replace(starter, arrangement=blocks(block_length))
