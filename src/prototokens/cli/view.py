"""The command that draws what files hold as one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .exits import DONE
from .file_model import load_file_model
from .options import FileModelOptions, Force, ModelOptions, check_tokens, encoder_for, load_encoder
from .spread import add_command
from .terminal import encoded, read_text, say

if TYPE_CHECKING:
    from ..lm.frozen import FrozenLM
    from ..lm.identity import Identity
    from ..proto_tokens import ProtoTokens
    from ..view.scenes import Scene

ENCODER_PANEL = "An encoder"
view_app = typer.Typer()

_MOST_POINTS = 1000


@add_command(view_app, "view", "First steps")
def view_command(
    model: FileModelOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write, .html.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Traces, archives, and one or two files of proto-tokens.", metavar="FILE"),
    ] = None,
    points: Annotated[int, typer.Option(help="Places on the way between two texts, evenly spaced.", metavar="N")] = 41,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Show what this encoder makes of --text: a folder, a Hub id, or shipped.",
            rich_help_panel=ENCODER_PANEL,
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="The encoder's text; - reads it from stdin.", rich_help_panel=ENCODER_PANEL)
    ] = None,
    n_tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens", help="Keep only the text's first N tokens.", metavar="N", rich_help_panel=ENCODER_PANEL
        ),
    ] = None,
    force: Force = False,
) -> int:
    """Draw what files hold as one HTML page that needs no network.

    A trace, which fit --trace writes, becomes the fit, step by step.
    A file of proto-tokens becomes its decode beside greedy generation, which is measured here.
    Two of them become the way between their vectors.
    An archive becomes its tokens, by where they come from, and the bytes of each window.
    With --encoder and --text, a text becomes what an encoder makes of it.

    Example: prototokens view letter.trace letter.safetensors -o letter.html
    """
    from ..files.atomic import check_new_file
    from ..view.page import write_page

    files = files or []
    check_new_file(output, overwrite=force)
    if not 2 <= points <= _MOST_POINTS:
        raise InputError(f"--points is {points}; it must be at least 2 and at most {_MOST_POINTS}")
    if (encoder is None) != (text is None):
        raise InputError("--encoder and --text go together: give both, or neither")
    if encoder is None and n_tokens is not None:
        raise InputError("--tokens cuts the encoder's text: give --encoder and --text too")
    if not files and encoder is None:
        raise InputError("there is nothing to draw: give at least one file, or --encoder and --text")
    check_tokens(n_tokens)
    models = Models(model)
    scenes = _scenes(files, points, models)
    if encoder is not None:
        scenes.append(_encoder_scene(encoder, read_text(text, None), n_tokens, models))
    write_page(output, scenes, overwrite=force)
    say(f"saved: {output} ({output.stat().st_size / 1e3:,.0f} kB): {', '.join(scene.kind for scene in scenes)}")
    return DONE


class Models:
    """The models that files need, each loaded once.

    Args:
        named: the user's options.
    """

    def __init__(self, named: FileModelOptions) -> None:
        self.named = named
        self._loaded: dict[str, FrozenLM] = {}

    def of(self, needed: Identity, file: Path) -> FrozenLM:
        """The model that a file belongs to, or the one that the user names."""
        if needed.fingerprint not in self._loaded:
            self._loaded[needed.fingerprint] = load_file_model(self.named, needed, file)[0]
        return self._loaded[needed.fingerprint]

    def default(self) -> FrozenLM:
        """The model that the user names, or that of the files, or the built-in one."""
        loaded = next(iter(self._loaded.values()), None)
        if loaded is not None:
            return loaded
        named = {} if self.named.model is None else {"model": self.named.model}
        return ModelOptions(**named, loading=self.named.loading).load()


def _scenes(files: list[Path], points: int, models: Models) -> list[Scene]:
    """The scenes of the files, in their order; two files of proto-tokens are one scene.

    Raises:
        InputError: a file is none that can be drawn, or there are too many of one kind.
    """
    from ..archive.archive import KIND as ARCHIVE
    from ..archive.archive import read_archive
    from ..files.record import record_kind
    from ..fitting.trace import KIND as TRACE
    from ..fitting.trace import load_trace
    from ..proto_tokens import KIND as VECTORS
    from ..proto_tokens import load
    from ..view.archives import scene_of_archive
    from ..view.fits import scene_of_fit

    kinds = {file: record_kind(file) for file in files}
    for file, kind in kinds.items():
        if kind not in (TRACE, ARCHIVE, VECTORS):
            raise InputError(f"{file}: holds {kind}; view draws a {TRACE}, {VECTORS} or an {ARCHIVE}")
    vectors = [file for file in files if kinds[file] == VECTORS]
    if len(vectors) > 2:
        raise InputError(f"{len(vectors)} files of proto-tokens; view draws one, or the way between two")
    loaded = {file: load(file) for file in vectors}
    scenes, archives = [], {file: read_archive(file) for file in files if kinds[file] == ARCHIVE}
    for file in dict.fromkeys(files):
        if kinds[file] == TRACE:
            scenes.append(scene_of_fit(load_trace(file)))
        elif kinds[file] == ARCHIVE:
            lm = models.of(archives[file].model, file)
            scenes.append(scene_of_archive(lm, file, archives[file]))
        elif file == vectors[-1]:
            scenes.append(_vectors_scene([(name, loaded[name]) for name in vectors], points, models))
    return scenes


def _vectors_scene(named: list[tuple[Path, ProtoTokens]], points: int, models: Models) -> Scene:
    """The scene of one file of proto-tokens, or of two."""
    from ..geometry.paths import segment
    from ..view.races import run_race, scene_of_decode
    from ..view.ways import scene_of_way

    (file, first), *rest = named
    if rest:
        segment(first, rest[0][1])  # refuses what has no way before a model is loaded
    lm = models.of(first.provenance.model, file)
    if not rest:
        return scene_of_decode(lm, first, run_race(lm, first))
    ((other, last),) = rest
    return scene_of_way(lm, first, last, points, (str(file), str(other)))


def _encoder_scene(name: str, content: str, n_tokens: int | None, models: Models) -> Scene:
    from ..view.encoders import scene_of_encoder

    named = load_encoder(name)
    lm = models.default()
    return scene_of_encoder(lm, encoder_for(lm, named), encoded(lm, content)[:n_tokens])
