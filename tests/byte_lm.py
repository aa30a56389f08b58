"""What the tests of texts share: a model whose ids are bytes, and the check that an error is one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from prototokens.errors import InputError


class ByteTokenizer:
    """Bytes as ids, with one special token, 255, and one row of the vocabulary, 256, that is no token."""

    added_tokens_decoder: ClassVar = {255: SimpleNamespace(special=True)}

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(ids).decode(errors="replace")

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(256)}

    def __len__(self) -> int:
        return 256


class ByteLM:
    """What text sources need of an LM, and how often it was asked."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, text: str) -> torch.Tensor:
        self.encoded.append(text)
        return torch.tensor(list(text.encode()))

    def decode(self, ids: torch.Tensor) -> str:
        return bytes(ids.tolist()).decode(errors="replace")


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message
