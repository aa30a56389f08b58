"""A decode as a scene: the one pass beside greedy generation, at the speeds that were measured."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from ..decoding import Decoded, decode
from ..lm.frozen import FrozenLM
from ..lm.pieces import pieces
from ..proto_tokens import ProtoTokens
from .scenes import Film, Lane, Mark, Scene, counted, level

REPEATS = 5
_ENOUGH_SECONDS = 60.0  # of measuring, after the first round
_FRAMES = 160
LEADS = {
    "A": Mark("leads by less than 1 logit", "blue-1"),
    "B": Mark("leads by 1 to 4 logits", "blue-2"),
    "C": Mark("leads by more than 4 logits", "blue-3"),
    "P": Mark("written by greedy generation", "plain"),
}


@dataclass(frozen=True, eq=False)
class Race:
    """One pass and greedy generation of as many tokens, timed in turn.

    Attributes:
        decoded: what the pass read, with its scores.
        generated_ids: what greedy generation wrote after the BOS vector, int64, (T,).
        decode_seconds: median wall time of the pass.
        generate_seconds: median wall time of generating T tokens with a KV cache.
        repeats: the number of rounds behind the medians.
    """

    decoded: Decoded
    generated_ids: torch.Tensor
    decode_seconds: float
    generate_seconds: float
    repeats: int

    @property
    def ratio(self) -> float:
        """How many times as long generation takes."""
        return self.generate_seconds / self.decode_seconds


def run_race(
    lm: FrozenLM, tokens: ProtoTokens, repeats: int = REPEATS, enough_seconds: float = _ENOUGH_SECONDS
) -> Race:
    """Time decoding beside greedy generation of as many tokens; the first round warms up.

    Long texts get fewer rounds: none begins after `enough_seconds`, but the first that counts.

    Raises:
        InputError: see `decode` and `FrozenLM.generate`.
    """
    prompt = lm.fixed_vector("bos").expand(1, 1, -1)
    decoded = decode(lm, tokens, scores=True)
    one_pass: list[float] = []
    generated: list[float] = []
    began = 0.0
    while len(one_pass) < repeats + 1:  # in turn, so that both see the same machine
        clock = time.perf_counter()
        decode(lm, tokens, scores=False)
        one_pass.append(time.perf_counter() - clock)
        clock = time.perf_counter()
        ids = lm.generate(prompt, tokens.length).cpu()[0]
        generated.append(time.perf_counter() - clock)
        if len(one_pass) == 1:
            began = time.perf_counter()
        elif time.perf_counter() - began > enough_seconds:
            break
    medians = statistics.median(one_pass[1:]), statistics.median(generated[1:])
    return Race(decoded, ids, *medians, repeats=len(one_pass) - 1)


def scene_of_decode(lm: FrozenLM, tokens: ProtoTokens, race: Race, name: str = "") -> Scene:
    """The scene of a decode: at each moment, what either way has written."""
    length, fast, slow = tokens.length, race.decode_seconds, race.generate_seconds
    whole = max(fast, slow)
    decimals = 3 if whole < 1 else 2 if whole < 10 else 1
    times = [whole * i / (_FRAMES - 1) for i in range(_FRAMES)]
    shown_fast = [length if t >= fast else 0 for t in times]
    shown_slow = [min(length, int(length * t / slow + 1e-9)) for t in times]
    assert race.decoded.margins is not None
    marks = "".join("ABC"[level(lead)] for lead in race.decoded.margins.tolist())
    film = Film(
        name="",
        lanes=[
            Lane(f"One pass: {fast:.3g} s", [pieces(lm, race.decoded.ids)], [marks], shown_fast),
            Lane(f"Greedy generation: {slow:.3g} s", [pieces(lm, race.generated_ids)], ["P" * length], shown_slow),
        ],
        status=[
            f"After {t:.{decimals}f} s: {a} of {length} tokens by one pass, {b} of {length} by greedy generation."
            for t, a, b in zip(times, shown_fast, shown_slow, strict=True)
        ],
        slider="time",
        ticks=[f"{t:.{decimals}f} s" for t in times],
        seconds=whole,
    )
    measured = "measured once" if race.repeats == 1 else f"medians of {race.repeats}"
    words = [
        f"{counted(tokens.n_vectors, 'vector')} of {lm.identity.name} become {counted(length, 'token')} in one pass. "
        "Greedy generation with a KV cache takes a pass for each token.",
        f"Generating takes {race.ratio:.1f} times as long ({measured}, on {lm.device.type}). Playing takes the time "
        "that was measured.",
        "Greedy generation writes a text of its own after the model's first token: only its speed is compared.",
    ]
    warning = "" if race.decoded.exact else "This is not the text that was fitted, token for token."
    title = f"A decode of {counted(length, 'token')}" + (f": {name}" if name else "")
    return Scene("decode", title, words, [film], LEADS, warning=warning)
