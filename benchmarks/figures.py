"""Figures that are the same file whenever they are drawn from the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure by its suffix; an SVG holds neither a date nor names drawn at random."""
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    matplotlib.rcParams["svg.hashsalt"] = "prototokens"
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
