"""What the tests of encoders share: small encoders of tiny models, a file of prose, and short trainings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from families import family
from prototokens import FrozenLM
from prototokens.encoder.config import EncoderConfig
from prototokens.encoder.encoding import Encoder
from prototokens.encoder.recipes import EncoderTraining, Schedule, TextChoice
from prototokens.encoder.training.distributed import Processes
from prototokens.encoder.training.loop import train_encoder

CONFIG = EncoderConfig(block_length=2, neighbours=1, width=32, layers=2, token_width=16)
TRUNK_CONFIGS = (
    CONFIG,
    replace(CONFIG, trunk="transformer", neighbours=3),
    replace(CONFIG, hidden_layer=-1, m="global", neighbours=0),
)

PROSE = (
    "The harbour was quiet before dawn. Two boats lay at the pier, and their ropes creaked. Who would sail today? "
    "Nobody had asked the old man, who knew the wind better than any of them. He looked at the sky for a while. "
    "Then he went home to his bread and his books. By noon the storm had come! Roofs flew, and the boats were gone. "
)


def prose_file(folder: Path) -> str:
    """A file with some prose in it."""
    path = folder / "prose.txt"
    path.write_text(PROSE * 3)
    return str(path)


def short_training(source: str, **changes: Any) -> EncoderTraining:
    """Six steps of small batches."""
    settings: dict[str, Any] = {
        "steps": 6,
        "batch_positions": 24,
        "lengths": (2, 4),
        "schedule": Schedule(lr=3e-3, warmup_steps=2),
        "texts": TextChoice(source, validation_texts=4),
        "validate_every": 2,
    }
    return EncoderTraining(**{**settings, **changes})


def random_encoder(lm: FrozenLM | None = None, config: EncoderConfig = CONFIG, seed: int = 0) -> Encoder:
    """An encoder whose head is not zero any more, so that its outputs differ from text to text."""
    encoder = Encoder.untrained(lm or family("llama"), config, seed=seed)
    with torch.no_grad():
        encoder.network.head.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(seed))
    return encoder


def same(a: Encoder, b: Encoder) -> bool:
    """Whether two encoders hold the same bits and belong to the same model."""
    left, right = a.network.state_dict(), b.network.state_dict()
    equal = left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
    return equal and (a.config, a.model) == (b.config, b.model)


def curve(folder: Path) -> list[dict[str, Any]]:
    """The rows of a training's curve, without their wall time."""
    rows = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def train(
    lm: FrozenLM, folder: Path, training: EncoderTraining, config: EncoderConfig = CONFIG, **options: Any
) -> Encoder:
    """Train from an untrained encoder."""
    return train_encoder(lm, folder, Encoder.untrained(lm, config, seed=training.seed), training, **options)


class Slice(Processes):
    """One of several processes, without the others: it sees its own share of every batch."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count
