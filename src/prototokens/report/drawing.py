"""Drawing with matplotlib: one style that can be read on light and dark ground, as SVG and PNG.

The same figure gives the same bytes: no dates, no random ids. Matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from textwrap import wrap
from typing import Any

from ..errors import InputError
from .summary import Summary

INK = "#20242a"
"""Colour of lines and letters. In the page it becomes the colour of the text, in either theme."""

PALETTE = ("#2f7dc0", "#cf6a1d", "#23916a", "#946bd0", "#cc4458", "#85801f")
"""Colours of series. Each stands out on white and on the page's dark ground."""

MARKERS = ("o", "s", "^", "D", "v", "P")

WIDTH = 7.0
"""Of every figure, in inches."""

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "font.size": 9,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.frameon": False,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a name with dollars is a name
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def style() -> Iterator[None]:
    """A context with the style of every figure, for drawing and writing. A user's own settings have no effect.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("a report needs matplotlib; install it with: pip install 'prototokens[report]'") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def panels(rows: int, columns: int, height: float) -> tuple[Any, list[Any]]:
    """A new figure of some height, in inches, and its axes, row by row. All figures have one width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def legend(figure: Any, axes: list[Any], columns: int = 1) -> None:
    """One legend below all axes, each name once."""
    named = {name: line for ax in axes for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    if named:
        figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=columns)


def above(label: str, labels: Collection[str], columns: int = 1) -> str:
    """The label of a panel's series, wrapped for a row of `columns` panels; nothing where there is one series."""
    return "\n".join(wrap(label, 90 // columns)) if len(labels) > 1 else ""


def dots(ax: Any, summaries: Sequence[Summary | None], index: int, n_series: int, name: str) -> None:
    """Numbers over 0, 1, ... as dots with standard deviations, moved aside from those of the other series."""
    aside = (index - (n_series - 1) / 2) * 0.7 / n_series
    points = [(n + aside, summary) for n, summary in enumerate(summaries) if summary is not None]
    if points:
        xs, ys, spreads = zip(*((x, summary.value, summary.sd or 0.0) for x, summary in points), strict=True)
        style = {"color": PALETTE[index], "marker": MARKERS[index], "linestyle": "none", "capsize": 2}
        ax.errorbar(xs, ys, yerr=spreads, label=name, **style)


def named_ticks(ax: Any, names: Sequence[str]) -> None:
    """Names as the ticks at 0, 1, ..."""
    ax.set_xticks(range(len(names)), ["\n".join(wrap(name, 11)) for name in names], fontsize=7.5)
    ax.set_xlim(-0.5, max(1, len(names)) - 0.5)


def heat_map(ax: Any, values: list[list[float]], low: float = 0.0, high: float = 1.0) -> Any:
    """Numbers as coloured cells, the first row at the top. Cell (i, j) is centred on column j and row i, from 0.

    Returns:
        The mesh, for a colour bar.
    """
    from matplotlib.ticker import MaxNLocator

    seams = {"edgecolors": "face", "linewidth": 0.3}  # otherwise browsers show the ground between cells
    mesh = ax.pcolormesh(values, vmin=low, vmax=high, cmap="viridis", shading="nearest", **seams)
    ax.invert_yaxis()
    ax.grid(visible=False)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator("auto", integer=True))
    return mesh


def logarithmic(axis: Any) -> None:
    """Make an axis logarithmic, with plain numbers as its ticks."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def octaves(axis: Any, values: Iterable[float], apart: float = 1.6) -> None:
    """Make an axis logarithmic, with ticks at those values, such as lengths, that are a factor of `apart` apart."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    kept: list[float] = []
    for value in sorted(set(values)):
        if not kept or value >= apart * kept[-1]:
            kept.append(value)
    axis.set_ticks(kept, [f"{value:g}" for value in kept])
    axis.set_ticks([], minor=True)


def render(figure: Any, name: str) -> tuple[str, str, bytes]:
    """Write a figure as SVG and PNG.

    Returns:
        SVG for the page (no prolog, unique ids, ink in the colour of the text around it); SVG for a file, on white; and
        PNG, on white, at 160 dots an inch.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    vector, raster = io.BytesIO(), io.BytesIO()
    # The canvases are called directly: savefig draws everything twice, and lays it out anew each time.
    with style(), matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(vector, metadata={"Date": None, "Creator": None})
        figure.set_layout_engine("none")
        figure.set(facecolor="white", dpi=160)
        FigureCanvasAgg(figure).print_png(raster, metadata={"Software": None})
    svg = vector.getvalue().decode()
    inside = _in_page(svg[svg.index("<svg") :].strip(), name)
    return (
        inside,
        svg.replace("<defs>", '<rect width="100%" height="100%" fill="white"/>\n <defs>', 1),
        raster.getvalue(),
    )


def _in_page(svg: str, name: str) -> str:
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("*{stroke", f".{name} *{{stroke").replace("<svg ", f'<svg class="{name}" ', 1)
    return svg.replace(INK, "currentColor")
