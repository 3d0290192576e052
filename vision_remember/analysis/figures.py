"""The figures of an analysis: what probes read, what the text looks at, what the vision tokens resemble.

Every figure is drawn from the measurements that the report's tables and sentences quote, and carries its numbers as rows of a CSV file.
One colour a model; a muted reading is dashed. `page_looks.py` draws the pages.
"""

import csv
import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vision_remember.analysis.explain import save_png
from vision_remember.analysis.measurement import DETAIL, MEAN, Measurement, ahead, without_refusion
from vision_remember.analysis.recording import AS_IT_IS, MUTED
from vision_remember.evaluation.bootstrap import Interval
from vision_remember.evaluation.figures import COLOURS, GREY, STYLE, WIDTH_INCHES
from vision_remember.evaluation.records import write_text

DASHES: dict[str, Any] = {AS_IT_IS: "-", MUTED: (0, (3, 2))}
PANEL_HEIGHT_INCHES = 3.4
DOTS_PER_INCH = 160
LEVELS: dict[str, Any] = {"encoder": (0, (1, 1)), "chance": (0, (1, 4))}  # what is the same at every layer
PASSED, LAYER = "layers_passed", "layer"  # what a state stands after, and what an attention belongs to
Row = dict[str, object]


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """A figure, the name of its files and its numbers."""

    name: str
    figure: Figure
    rows: list[Row]

    @functools.cached_property
    def svg(self) -> str:
        """The figure as an SVG file, its text as text; equal figures give equal bytes."""
        FigureCanvasSVG(self.figure)
        svg = io.StringIO()
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            self.figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        return svg.getvalue()

    def save(self, folder: Path) -> list[Path]:
        """Writes `NAME.png`, `NAME.svg` and `NAME.csv`, each whole or not at all, and says where they are."""
        png, svg, table = (folder / f"{self.name}.{suffix}" for suffix in ("png", "svg", "csv"))
        save_png(self.figure, png)
        write_text(svg, self.svg)
        lines = io.StringIO(newline="")
        writer = csv.DictWriter(lines, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(table, lines.getvalue())
        return [png, svg, table]


def characters(measurements: Sequence[Measurement]) -> Drawn:
    """Draws what probes read after every layer, and the points by which that is more than without re-fusion or muted."""
    rows: list[Row] = []
    with mpl.rc_context(STYLE):
        figure, (left, right) = _panels(2)
        for number, (colour, one) in enumerate(_coloured(measurements)):
            found = one.characters
            assert found is not None
            for name, level in (("encoder", found.encoder), ("chance", found.chance)):
                left.axhline(100 * level.value, color=colour, linewidth=1, linestyle=LEVELS[name])
                rows += _rows(one, name, "", [level])
            for reading, curve in found.read.items():
                _curve(left, curve, colour, DASHES[reading], scale=100)
                rows += _rows(one, "read", reading, curve)
            plain = without_refusion(one, measurements)
            if plain is not None and (more := ahead(one, plain)):
                _curve(right, more, colour, "-", scale=100)
                rows += _rows(one, f"ahead of {plain.label}", "", more)
            if found.muting is not None:
                _curve(right, found.muting, colour, DASHES[MUTED], scale=100)
                rows += _rows(one, "muting costs", "", found.muting)
            _mark_insertions(left, one, colour, number)
        _titled(left, "characters read by a linear probe", "decoder layers passed", "% of held-out characters")
        _titled(right, "more than without re-fusion; dashed: than muted", "decoder layers passed", "points")
        left.set_ylim(-2, 102)
        right.axhline(0, color=GREY, linewidth=0.8)
        _legend(figure, measurements, {"encoder's own features": LEVELS["encoder"], "chance": LEVELS["chance"]})
    return Drawn(name="characters", figure=figure, rows=rows)


def attention(measurements: Sequence[Measurement]) -> Drawn:
    """Draws the share of the text's attention that vision tokens get, and its density, also against compression if that varies."""
    rows: list[Row] = []
    ratios = sorted({one.compression for one in measurements})
    with mpl.rc_context(STYLE):
        figure, panels = _panels(3 if len(ratios) > 1 else 2)
        for colour, one in _coloured(measurements):
            for reading in one.share:
                for quantity, curve, panel, scale in (
                    ("share", one.share[reading], panels[0], 100),
                    ("density", one.density[reading], panels[1], 1),
                ):
                    _curve(panel, curve, colour, DASHES[reading], scale=scale)
                    rows += _rows(one, quantity, reading, curve, LAYER)
            for panel in panels[2:]:
                curve = one.density[AS_IT_IS]
                panel.plot(one.compression, sum(x.value for x in curve) / len(curve), "o", color=colour)
        _titled(panels[0], "share", "decoder layer", "% of the text's attention")
        _titled(panels[1], "density", "decoder layer", "share / even share")
        for panel in panels[2:]:
            _titled(panel, "density, mean over layers", "patches per vision token", "share / even share")
            panel.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
            panel.set_xlim(0, 1.1 * ratios[-1])
        for panel in panels[1:]:
            panel.axhline(1, color=GREY, linewidth=0.8)
            panel.set_ylim(bottom=0)
        panels[0].set_ylim(-2, 102)
        _legend(figure, measurements)
    return Drawn(name="attention", figure=figure, rows=rows)


def similarity(measurements: Sequence[Measurement]) -> Drawn:
    """Draws what vision tokens resemble after every layer: the mean of their windows and, where any has more than one patch, the detail."""
    rows: list[Row] = []
    has_detail = any(
        value is not None for one in measurements for parts in one.similarity.values() for value in parts[DETAIL]
    )
    with mpl.rc_context(STYLE):
        figure, panels = _panels(2 if has_detail else 1)
        for panel, part in zip(panels, (MEAN, DETAIL), strict=False):
            for number, (colour, one) in enumerate(_coloured(measurements)):
                for reading, parts in one.similarity.items():
                    _curve(panel, parts[part], colour, DASHES[reading])
                    rows += _rows(one, part, reading, parts[part])
                _mark_insertions(panel, one, colour, number)
            panel.axhline(0, color=GREY, linewidth=0.8)
        titles = ("to the mean of the window: what pooling keeps", "to the detail in the window: what pooling drops")
        for panel, title in zip(panels, titles if has_detail else ("to the patch under the token",), strict=True):
            _titled(panel, title, "decoder layers passed", "similarity (CKA)")
        _legend(figure, measurements)
    return Drawn(name="similarity", figure=figure, rows=rows)


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH_INCHES, PANEL_HEIGHT_INCHES), dpi=DOTS_PER_INCH, layout="constrained")
    return figure, list(figure.subplots(1, number, squeeze=False)[0])


def _coloured(measurements: Sequence[Measurement]) -> Iterator[tuple[str, Measurement]]:
    return ((COLOURS[number % len(COLOURS)], one) for number, one in enumerate(measurements))


def _curve(
    panel: Axes, curve: Sequence[Interval] | Sequence[float | None], colour: str, dashes: Any, *, scale: float = 1
) -> None:
    """One line over layers, with a band where its values have intervals; undefined values leave a gap."""
    places = range(len(curve))
    if curve and isinstance(curve[0], Interval):
        low, high = ([scale * getattr(value, end) for value in curve] for end in ("low", "high"))
        panel.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
    values = [value.value if isinstance(value, Interval) else value for value in curve]
    heights = [float("nan") if value is None else scale * value for value in values]
    panel.plot(places, heights, color=colour, linestyle=dashes, linewidth=1.4, marker="o", markersize=3)


def _mark_insertions(panel: Axes, one: Measurement, colour: str, number: int) -> None:
    """Triangles where re-fusion acts: what a layer leaves includes the insertion that follows it."""
    places = [max(layer, 0) + 1 for layer in one.insertions]
    heights = [0.02 + 0.04 * number] * len(places)
    transform = panel.get_xaxis_transform()
    panel.plot(places, heights, "^", color=colour, markersize=5, transform=transform, alpha=0.7)


def _titled(panel: Axes, title: str, below: str, left: str) -> None:
    panel.set_title(title, loc="left")
    panel.set_xlabel(below)
    panel.set_ylabel(left)
    panel.grid(axis="y")
    panel.set_axisbelow(True)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def _legend(figure: Figure, measurements: Sequence[Measurement], others: Mapping[str, Any] | None = None) -> None:
    handles = [
        Line2D([], [], color=colour, label=f"{one.label}, {one.token_grid.num_cells} tokens")
        for colour, one in _coloured(measurements)
    ]
    readings = {(one.refusion, reading) for one in measurements for reading in one.share if reading != AS_IT_IS}
    dashed = {f"{refusion} {reading}": DASHES[reading] for refusion, reading in sorted(readings)} | dict(others or {})
    handles += [Line2D([], [], color=GREY, linestyle=dashes, label=name) for name, dashes in dashed.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)


def _rows(
    one: Measurement,
    quantity: str,
    reading: str,
    curve: Sequence[Interval] | Sequence[float | None],
    axis: str = PASSED,
) -> list[Row]:
    rows: list[Row] = []
    for place, value in enumerate(curve):
        ends = (value.value, value.low, value.high) if isinstance(value, Interval) else (value, None, None)
        low_to_high = ("" if end is None else f"{end:.6f}" for end in ends)
        facts: Row = {
            "model": one.label,
            "patches_per_token": f"{one.compression:g}",
            "quantity": quantity,
            "reading": reading,
        }
        is_level = quantity in LEVELS
        rows.append(
            facts | {axis: "" if is_level else place} | dict(zip(("value", "low", "high"), low_to_high, strict=True))
        )
    return rows
