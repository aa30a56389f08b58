"""Texts: seeded samples of exactly T tokens from the sources of `documents`.

Every draw uses `random.Random(seed).random()`, whose sequence Python promises to keep. Thus a seed gives the same texts
on every machine that has the same packages and tokenizer. Only `generated` also depends on the device, through the
model's logits and torch's generator.

References:
    G. Mezentsev and I. Oseledets (2025), Exploring the Latent Capacity of LLMs for One-Step Text Generation,
        https://arxiv.org/abs/2505.21189: random words, books, fan fiction, and the model's own continuations.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from bisect import bisect_left, insort
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..errors import InputError
from .corpora import SPLITS, Document, documents, words

if TYPE_CHECKING:
    from ..lm.frozen import FrozenLM

STARTS = ("anywhere", "sentence", "document")

_ROWS_PER_GENERATION = 64
_SPARE_TOKENS = 32

# A paragraph's end, or a sentence's. The three characters before the mark rule out "U. S." and "Mr.".
_SENTENCE_END = re.compile(r"\n\s*\n\s*|(?<=\w\w[\w)\]\"”’%])[.!?…][\"'”’»)\]]*\s+|[。！？]\s*")

_IDS: WeakKeyDictionary[FrozenLM, dict[str, Tensor]] = WeakKeyDictionary()


def sample(
    source: str | Path,
    lm: FrozenLM,
    length: int,
    count: int = 1,
    *,
    seed: int = 0,
    split: str = "test",
    start: str = "anywhere",
    column: str = "text",
    context_tokens: int = 64,
    per_context: int = 1,
) -> Tensor:
    """Draw `count` texts of exactly `length` tokens.

    Sources with documents follow this rule. Documents are put in a random order, weighted by their length in characters
    (sampling without replacement), and each gives one chunk. Then a new order is drawn, each gives one more, and so on.
    Chunks do not overlap as long as any document has one that does not. After that they may overlap, but no start is
    used twice. Documents of fewer than `length` tokens are left out. The first rows do not depend on `count`.

    Another length draws other texts. For one text at many lengths, draw the longest and take its prefixes.

    Args:
        source: a name from `SOURCES`, or the path of a .txt, .jsonl, .csv or .parquet file, or of a folder of files.
        lm: supplies the tokenizer, and for `generated` the model.
        length: T, of each text in tokens, at least 1.
        count: B, the number of texts, at least 1.
        seed: the same seed gives the same ids.
        split: `train`, `test` or `all`; see `documents` for the rule. Random words of two splits are drawn
            apart.
        start: where a chunk begins: `anywhere` (a token of the document's ids, drawn uniformly), `sentence` (a sentence
            or paragraph, drawn uniformly and tokenized as a text of its own; punctuation tells where sentences begin),
            or `document` (its first character). `random` ignores it; `generated` applies it to contexts.
        column: the column that holds the text in a .jsonl, .csv or .parquet file.
        context_tokens: the length in tokens of the old prose that `generated` continues, at least 1.
        per_context: how many texts of `generated` after one another continue the same prose, at least 1.

    Returns:
        Ids `(B, T)`, int64, on the CPU. They are slices of longer texts' ids: at a cut inside a word,
        decoding and encoding again may give other ids.

    Raises:
        InputError: an argument is out of bounds or unknown, the source cannot be read (see `documents`), its texts are
            shorter than T, or it holds fewer than `count` different chunks.
    """
    counts = {"length": length, "count": count, "context_tokens": context_tokens, "per_context": per_context}
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1")
    if per_context > 1 and source != "generated":
        raise InputError(f"per_context is {per_context}: only 'generated' continues contexts, not {source!r}")
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if start not in STARTS:
        raise InputError(f"unknown start {start!r}: choose one of {', '.join(STARTS)}")
    if source == "random":
        return torch.stack([_random_words(lm, length, f"{split}/{seed}/{row}") for row in range(count)])
    if source == "generated":
        contexts = sample("old", lm, context_tokens, -(-count // per_context), seed=seed, split=split, start=start)
        return continuations(lm, contexts.repeat_interleave(per_context, 0)[:count], length, seed=seed)
    texts = documents(source, split, column)
    rng = random.Random(f"{split}/{seed}")
    chunks = list(itertools.islice(_chunks(texts, lm, length, start, rng), count))
    if not chunks:
        longest = max(len(_encode(lm, d.text)) for d in texts)
        raise InputError(
            f"source {str(source)!r} has no text of {length} tokens, its longest has {longest}: "
            f"ask for at most {longest} tokens, or give a longer text"
        )
    if len(chunks) < count:
        raise InputError(
            f"source {str(source)!r} holds {len(chunks)} different chunks of {length} tokens "
            f"(split {split!r}, start {start!r}), not {count}: ask for fewer or shorter texts"
        )
    return torch.stack(chunks)


def sentence_starts(text: str) -> list[int]:
    """The characters at which sentences and paragraphs of a text begin, found by their punctuation; the first is 0."""
    after = (match.end() for match in _SENTENCE_END.finditer(text))
    return [0, *(i for i in after if 0 < i < len(text) and not text[i].islower())]


def continuations(lm: FrozenLM, contexts: Tensor, n_tokens: int, *, seed: int = 0) -> Tensor:
    """Texts sampled from the model itself, as continuations of given ids.

    Multinomial sampling from the model's own distribution: temperature 1, no top-k, no top-p, whatever defaults the
    model comes with. Special tokens and ids beyond the tokenizer's are no text. They get probability 0 and the rest is
    renormalised, so that no continuation ends early. Repeat a row of `contexts` for several continuations of it.

    Args:
        lm: the model that generates; it stays unchanged, and so do torch's random states (CPU and CUDA).
        contexts: ids `(B, C)`, int64, C at least 1.
        n_tokens: T, the number of new tokens, at least 1.
        seed: the same seed, device and batch give the same ids.

    Returns:
        The new ids alone, `(B, T)`, int64, on the CPU.

    Raises:
        InputError: `n_tokens` is less than 1, C + T is more than the model's positions, or as in
            `FrozenLM.check_ready`.
    """
    if n_tokens < 1:
        raise InputError(f"n_tokens is {n_tokens}: it must be at least 1")
    length = contexts.shape[1] + n_tokens
    if lm.max_positions is not None and length > lm.max_positions:
        raise InputError(
            f"{contexts.shape[1]} context tokens and {n_tokens} more make {length}, "
            f"but the model has {lm.max_positions} positions: ask for fewer"
        )
    lm.check_ready(length)
    from transformers import GenerationConfig

    from ..lm.generation import mixes_rows, without_own_settings

    model = without_own_settings(lm.model)
    no_text = [i for i, token in lm.tokenizer.added_tokens_decoder.items() if token.special]
    no_text += range(len(lm.tokenizer), model.config.get_text_config().vocab_size)
    sampling = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=n_tokens,
        suppress_tokens=no_text or None,
    )
    rows = []
    with torch.random.fork_rng([lm.device] if lm.device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        for batch in contexts.split(1 if mixes_rows(lm) else _ROWS_PER_GENERATION):
            ids = batch.to(lm.device)  # (≤64, C)
            mask = torch.ones_like(ids)
            whole = model.generate(ids, attention_mask=mask, generation_config=sampling)  # (≤64, C + T)
            rows.append(whole[:, ids.shape[1] :].cpu())
    return torch.cat(rows)  # (B, T)


def _random_words(lm: FrozenLM, length: int, seed: str) -> Tensor:
    """The first `length` ids, `(T,)`, of an endless row of random words."""
    rng = random.Random(seed)
    vocabulary = words()
    row: list[str] = []
    ids = torch.empty(0, dtype=torch.long)
    while len(ids) < length:
        row += [vocabulary[int(rng.random() * len(vocabulary))] for _ in range(length)]
        ids = lm.encode(" ".join(row)).cpu()
    return ids[:length]


def _chunks(texts: list[Document], lm: FrozenLM, length: int, start: str, rng: random.Random) -> Iterator[Tensor]:
    """Different chunks `(T,)` of the documents until there are no more; `sample` states the rule."""
    cutters = [_Cutter(document.text, lm, length, start) for document in texts]
    for overlap in (False, True):
        pool = cutters
        while pool:
            # Sorting by exponential variates, rates = lengths, is weighted sampling without replacement.
            order = sorted(pool, key=lambda cutter: -math.log(1 - rng.random()) / len(cutter.text))
            pool = []
            for cutter in order:
                ids = cutter.draw(rng, overlap)
                if ids is not None:
                    pool.append(cutter)
                    yield ids


class _Cutter:
    """Cuts different chunks out of one text; positions are tokens for `anywhere`, characters otherwise."""

    def __init__(self, text: str, lm: FrozenLM, length: int, start: str) -> None:
        self.text, self.lm, self.length, self.start = text, lm, length, start
        self.clear: list[int] | None = None  # starts not yet drawn; None until the text is first needed
        self.overlapping: list[int] = []  # starts whose chunks overlap one that was drawn
        self.taken: list[tuple[int, int]] = []  # chunks drawn without overlap: first position, end; sorted

    def draw(self, rng: random.Random, overlap: bool) -> Tensor | None:
        """A chunk `(T,)` at a start not drawn before, uniform over those that do (not) overlap, or None."""
        if self.clear is None:
            self.clear = self._starts()
        pool = self.overlapping if overlap else self.clear
        while pool:
            index = int(rng.random() * len(pool))
            pool[index], pool[-1] = pool[-1], pool[index]
            first = pool.pop()
            if not overlap and not self._free(first, first + 1):
                self.overlapping.append(first)
                continue
            ids = self._cut(first)
            if ids is None:
                continue
            if overlap:
                return ids
            end = first + (self.length if self.start == "anywhere" else len(self.lm.decode(ids)))
            if self._free(first, end):
                insort(self.taken, (first, end))
                return ids
            self.overlapping.append(first)
        return None

    def _starts(self) -> list[int]:
        if self.start == "anywhere":
            return list(range(len(_encode(self.lm, self.text)) - self.length + 1))
        if self.start == "document":
            return [0]
        return sentence_starts(self.text)

    def _cut(self, first: int) -> Tensor | None:
        """The ids `(T,)` from a start, or None where fewer than T are left."""
        if self.start == "anywhere":
            return _encode(self.lm, self.text)[first : first + self.length]
        # Tokenize no more than needed. The window's end may cut a word: tokens just before it are not used.
        characters = 8 * self.length + 64
        while True:
            ids = self.lm.encode(self.text[first : first + characters]).cpu()
            if first + characters >= len(self.text) or len(ids) >= self.length + _SPARE_TOKENS:
                return ids[: self.length] if len(ids) >= self.length else None
            characters *= 2

    def _free(self, first: int, end: int) -> bool:
        """Whether the positions from `first` to before `end` lie outside all chunks drawn without overlap."""
        i = bisect_left(self.taken, (first, end))
        before = self.taken[i - 1][1] if i else first
        after = self.taken[i][0] if i < len(self.taken) else end
        return before <= first and end <= after


def _encode(lm: FrozenLM, text: str) -> Tensor:
    """A whole document's ids, kept as long as the LM lives: tokenizing costs seconds per million tokens."""
    known = _IDS.setdefault(lm, {})
    if text not in known:
        known[text] = lm.encode(text).cpu()
    return known[text]
