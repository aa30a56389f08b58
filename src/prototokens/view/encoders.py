"""An encoder as a scene: how sure each token of a text is that it wrote in one pass."""

from __future__ import annotations

import json

from torch import Tensor

from ..decoding import decode
from ..encoder.encoding import Encoder
from ..lm.frozen import FrozenLM
from ..lm.pieces import pieces
from .scenes import Film, Lane, Mark, Scene, Table, block_ends, counted, level

BOUNDS = (0.5, 0.9)
MARKS = {
    "A": Mark("right, probability below 50 %", "blue-1"),
    "B": Mark("right, probability 50 to 90 %", "blue-2"),
    "C": Mark("right, probability above 90 %", "blue-3"),
    "X": Mark("wrong, probability below 50 %", "orange-1", "wave"),
    "Y": Mark("wrong, probability 50 to 90 %", "orange-2", "wave"),
    "Z": Mark("wrong, probability above 90 %", "orange-3", "wave"),
}


def scene_of_encoder(lm: FrozenLM, encoder: Encoder, target_ids: Tensor) -> Scene:
    """The scene of an encoder's vectors for a text, ids (T,): what they decode to, and with which probability.

    Raises:
        InputError: the encoder belongs to another model, or the text is longer than it takes.
    """
    tokens = encoder(lm, target_ids)
    decoded = decode(lm, tokens, scores=True)
    assert decoded.log_probs is not None
    assert decoded.margins is not None
    right = (decoded.ids == target_ids.cpu()).tolist()
    shares = decoded.log_probs.exp().tolist()
    wanted, got = pieces(lm, target_ids), pieces(lm, decoded.ids)
    texts = [a if is_right else b for a, b, is_right in zip(wanted, got, right, strict=True)]
    marks = "".join(("XYZ", "ABC")[r][level(p, BOUNDS)] for r, p in zip(right, shares, strict=True))
    n_right, length = sum(right), len(right)
    status = f"{n_right} of {length} tokens right, mean probability {sum(shares) / length:.0%}."
    rows = [
        (str(number), _quoted(a), "yes" if is_right else f"no: {_quoted(b)}", f"{share:.1%}", f"{margin:.2f}")
        for number, (a, b, is_right, share, margin) in enumerate(
            zip(wanted, got, right, shares, decoded.margins.tolist(), strict=True), start=1
        )
    ]
    table = Table(
        "Every token: the probability of the decoded one, and its lead over the next best.",
        ("position", "token", "right", "probability", "lead, logits"),
        rows,
    )
    words = [
        f"{tokens.provenance.start} wrote {counted(tokens.n_vectors, 'vector')} for {lm.identity.name} in one pass, "
        "without a fit. One pass of the model decodes them.",
        f"The text: {lm.decode(target_ids)}",
    ]
    ends = block_ends(length, tokens.arrangement.block_length)
    film = Film("", [Lane("", [texts], [marks])], [status], "", [""], 0.0, ends=ends)
    title = f"An encoder's {counted(length, 'token')}: {n_right} right"
    return Scene("encoder", title, words, [film], MARKS, tables=[table])


def _quoted(text: str) -> str:
    """A token's text in which spaces and line breaks are seen."""
    return json.dumps(text, ensure_ascii=False)
