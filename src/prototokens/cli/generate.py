"""The command `generate`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .exits import DONE
from .one_text import PANEL
from .options import SHIPPED, Json, ModelOptions
from .spread import add_command
from .terminal import encoded, note, print_json, read_text, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..drafting.drafter import Drafter
    from ..drafting.generating import DraftTree, Generation, Sampling
    from ..lm.frozen import FrozenLM

generate_app = typer.Typer()
SAMPLING_PANEL, DRAFTS_PANEL = "Sampling", "Drafts"
_NONE = "none"
_WARM_UP_TOKENS = 8
_UNFINISHED = "\ufffd"  # what a decoder writes for the first bytes of a character


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen."""

    temperature: Annotated[
        float,
        typer.Option(help="0: always the likeliest token. Above: sampled.", rich_help_panel=SAMPLING_PANEL),
    ] = 0.0
    top_k: Annotated[
        int | None,
        typer.Option(help="Sample from the K likeliest tokens.", metavar="K", rich_help_panel=SAMPLING_PANEL),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Sample from the likeliest tokens whose chances add up to P.",
            metavar="P",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of all random draws.", rich_help_panel=SAMPLING_PANEL)] = 0

    def sampling(self) -> Sampling:
        """What these options say.

        Raises:
            InputError: one is out of bounds, or has no effect.
        """
        from ..drafting.generating import Sampling

        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise InputError("--top-k and --top-p are for sampling: give a --temperature above 0, such as 1")
        top_p = 1.0 if self.top_p is None else self.top_p
        return Sampling(self.temperature, self.top_k or 0, top_p, self.seed)


@dataclass(frozen=True)
class DraftOptions:
    """What drafts, and how much of it is verified."""

    drafter: Annotated[
        str | None,
        typer.Option(
            help="A drafter's file, shipped, or none: one token a pass. Default: the one that comes with the package, "
            "where there is one for the model.",
            metavar="PATH",
            rich_help_panel=DRAFTS_PANEL,
        ),
    ] = None
    tree_width: Annotated[
        int, typer.Option(help="Candidates for each place; 1: a chain.", rich_help_panel=DRAFTS_PANEL)
    ] = 4
    max_nodes: Annotated[int, typer.Option(help="Most tokens that a pass verifies.", rich_help_panel=DRAFTS_PANEL)] = 64
    lookup: Annotated[
        bool,
        typer.Option(
            help="Draft from the text so far, too: what followed the same tokens.", rich_help_panel=DRAFTS_PANEL
        ),
    ] = True
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Then generate without drafts too, and compare.", rich_help_panel=DRAFTS_PANEL),
    ] = False

    def tree(self) -> DraftTree:
        """What these options say."""
        from ..drafting.generating import DraftTree

        return DraftTree(self.tree_width, self.max_nodes, self.lookup)

    def load(self) -> Drafter | None:
        """The drafter in the file, where one is named.

        Raises:
            InputError: it cannot be read, or there is nothing to compare.
        """
        from ..drafting.drafter import load_drafter

        if self.compare and self.drafter == _NONE:
            raise InputError("--compare is for generation with drafts, and --drafter is none: leave one of them out")
        return None if self.drafter in (None, SHIPPED, _NONE) else load_drafter(self.drafter)

    def drafter_for(self, lm: FrozenLM, named: Drafter | None) -> Drafter | None:
        """The drafter that was named, or the shipped one, or none.

        Raises:
            InputError: a drafter is needed, and none comes with the package for this model.
        """
        from ..drafting.drafter import shipped_drafter

        drafter = named if named is not None or self.drafter == _NONE else shipped_drafter(lm.identity)
        if drafter is None and (self.drafter == SHIPPED or self.compare):
            raise InputError(f"{_lacking(lm)}: name one (--drafter FILE), or make one: {_remedy(lm)}")
        return drafter


@add_command(generate_app, "generate", PANEL)
def generate_command(
    model: ModelOptions,
    drafts: DraftOptions,
    choice: SamplingOptions,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the prompt from this UTF-8 file.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Most tokens to write; a stop token ends the text before.", metavar="N")
    ] = 128,
    as_json: Json = False,
) -> int:
    """Write on from a prompt, several tokens a pass with a drafter.

    The new text comes to stdout as it is written. The drafter changes the time that it takes, and not the text.

    Example: prototokens generate "My fellow citizens," --compare
    """
    from ..drafting.generating import generate, stop_tokens

    content = read_text(prompt, file)
    sampling, tree = choice.sampling(), drafts.tree()
    named = drafts.load()
    lm = model.load()
    drafter = drafts.drafter_for(lm, named)
    ids = encoded(lm, content)

    def run(drafter: Drafter | None, n_tokens: int, write: Callable[[str], None] | None = None) -> Generation:
        stream = TextStream(lm, stop_tokens(lm), write)
        return generate(
            lm, ids, drafter=drafter, max_new_tokens=n_tokens, sampling=sampling, tree=tree, streamer=stream
        )

    if drafts.compare:  # what is done once for a model is not timed
        for either in (drafter, None):
            run(either, min(_WARM_UP_TOKENS, max_new_tokens))
    result = run(drafter, max_new_tokens, None if as_json else _write_now)
    plain = run(None, max_new_tokens) if drafts.compare else None
    record = _record(lm, drafter, result, plain)
    if as_json:
        print_json(record)
        return DONE
    say(end="\n" if sys.stdout.isatty() else "", flush=True)
    _tell(record)
    if drafter is None and drafts.drafter != _NONE:
        note(f"note: {_lacking(lm)}, so that each pass wrote one token; make one: {_remedy(lm)}")
    if plain is not None and record["first_difference"] is not None:
        note(f"note: {_difference(lm, ids, result, plain, record['first_difference'], sampling)}")
    return DONE


class TextStream:
    """Tells a text as its tokens come, whole characters only.

    transformers' own streamer decodes every line apart, by which some tokenizers lose a space, and it prints a newline
    at the end.

    Args:
        lm: decodes.
        stop_ids: tokens that end a text and are no part of it.
        write: told of each further piece of the text; None: of none.
    """

    def __init__(self, lm: FrozenLM, stop_ids: Collection[int], write: Callable[[str], None] | None = None) -> None:
        self.lm, self.stop_ids, self.write = lm, stop_ids, write
        self.ids: list[int] | None = None  # None until the prompt has come
        self.context, self.told = 0, 0  # where the last piece began, and where it ended

    def put(self, ids: Tensor) -> None:
        """Take the prompt, (1, L), and then the new tokens, each (1,)."""
        if self.ids is None:
            self.ids = []
            return
        self.ids += [token for token in ids.flatten().tolist() if token not in self.stop_ids]
        self._tell(wait=True)

    def end(self) -> None:
        """Tell the rest."""
        self._tell(wait=False)

    def _tell(self, *, wait: bool) -> None:
        import torch

        # A decoder may treat the first token of a text apart: the piece before is decoded with it.
        ids = torch.tensor((self.ids or [])[self.context :], dtype=torch.long)
        text = self.lm.decode(ids)
        if wait and text.endswith(_UNFINISHED):
            return
        piece = text[len(self.lm.decode(ids[: self.told - self.context])) :]
        self.context, self.told = self.told, self.context + len(ids)
        if self.write is not None and piece:
            self.write(piece)


def _lacking(lm: FrozenLM) -> str:
    return f"no drafter for {lm.identity.name} comes with the package"


def _remedy(lm: FrozenLM) -> str:
    return f"prototokens drafter train --model {shlex.quote(lm.identity.name)} -o FILE"


def _write_now(piece: str) -> None:
    say(piece, end="", flush=True)


def _record(lm: FrozenLM, drafter: Drafter | None, result: Generation, plain: Generation | None) -> dict[str, Any]:
    """The fields of `--json`."""
    record = {
        "text": result.text,
        "tokens": len(result.ids),
        "passes": result.passes,
        "tokens_per_pass": result.tokens_per_pass,
        "seconds": result.seconds,
        "stopped": result.stopped,
        "drafter": None if drafter is None else drafter.name,
        "model": lm.identity.name,
    }
    if plain is None:
        return record
    pairs = zip(result.ids.tolist(), plain.ids.tolist(), strict=False)
    difference = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    return record | {
        "plain_seconds": plain.seconds,
        "speedup": plain.seconds / result.seconds,
        "same_text": difference is None,
        "first_difference": difference,
    }


def _tell(record: dict[str, Any]) -> None:
    ended = ", ended by a stop token" if record["stopped"] else ""
    per_pass = f"{record['tokens_per_pass']:.2f} a pass"
    note(f"{record['tokens']} tokens in {record['passes']} passes ({per_pass}), {record['seconds']:.2f} s{ended}")
    if "plain_seconds" in record:
        told = ", with the same text" if record["same_text"] else ""
        note(f"without drafts {record['plain_seconds']:.2f} s: {record['speedup']:.2f} times as long{told}")


def _difference(
    lm: FrozenLM, prompt_ids: Tensor, result: Generation, plain: Generation, place: int, sampling: Sampling
) -> str:
    """Why two texts part at a place."""
    import torch

    from ..drafting.passes import rounding

    parted = f"the texts differ after {place} tokens"
    if sampling.temperature:
        return f"{parted}: a random draw fell between two tokens, up to rounding"
    logits = lm.next_token_logits(torch.cat([prompt_ids.cpu(), plain.ids[:place]]))[-1]
    gap = (logits[result.ids[place]] - logits[plain.ids[place]]).abs().item()
    if gap > rounding(lm, logits):
        return (
            f"{parted}, where the two tokens are {gap:.2g} logits apart: more than rounding explains; please report it"
        )
    return f"{parted}: there two tokens were tied up to rounding ({gap:.1g} logits apart)"
