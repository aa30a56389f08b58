"""A fit's result as `fit` and `encode` print it: one JSON record, and three lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..fitting.fit import FitResult
    from ..fitting.recipes import FitConfig


def fit_record(result: FitResult, text: str, config: FitConfig) -> dict[str, Any]:
    """The fields of `--json`, but for the file and the model."""
    return {
        "text": text,
        "length": result.tokens.length,
        "exact": result.exact,
        "token_accuracy": result.token_accuracy,
        "min_margin": result.min_margin,
        "loss": result.loss,
        "steps": result.steps,
        "steps_to_exact": result.steps_to_exact,
        "token_positions": result.token_positions,
        "backward_positions": result.backward_positions,
        "seconds": result.seconds,
        "stop_reason": result.stop_reason,
        "preset": config.preset,
        "arrangement": result.tokens.arrangement.name,
        "restarts": config.restarts,
        "seed": config.seed,
    }


def print_fit(record: dict[str, Any]) -> None:
    """The same for people."""
    right = round(record["token_accuracy"] * record["length"])
    word = "exact" if record["exact"] else "NOT exact"
    print(f"{word}: {right} of {record['length']} tokens come back in one forward pass")
    print(f"{record['steps']} steps, {record['seconds']:.1f} s, smallest margin {record['min_margin']:.3f} logits")
    print(f"saved: {record['file']}")
