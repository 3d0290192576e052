"""The plots of a comparison as SVG text: score per family, score against tokens, row against row, learning curves.

The only file of this room that imports matplotlib. Text stays text (selectable, in the reader's own font), colours are Okabe and Ito's,
which colour-blind readers can tell apart, and the same results give the same bytes.
"""

import functools
import io
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

Results = Mapping[str, Any]

WIDTH_INCHES = 7.6
INK, GREY, HAIRLINE = "#1d2126", "#6b7280", "#e3e5e8"
REFERENCE_COLOUR = "#374151"
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#B8860B", "#6A3D9A", "#8C2D04")
MARKERS = ("o", "s", "D", "^", "v", "P")  # one a round of the colours, and so are the lines of the curves
LINES = ("solid", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
SPREAD = 1.35  # from the first to the last of the rows with equal tokens
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": GREY,
    "axes.edgecolor": HAIRLINE,
    "axes.linewidth": 0.8,
    "axes.titlesize": 9.0,
    "xtick.color": GREY,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": HAIRLINE,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
}


def _drawn(label: str, salt: str) -> Callable[[Callable[[Results], Figure]], Callable[[Results], str]]:
    """Turn a function that draws a figure into one that returns it as SVG in the house style."""

    def wrap(draw: Callable[[Results], Figure]) -> Callable[[Results], str]:
        @functools.wraps(draw)
        def drawn(results: Results) -> str:
            with mpl.rc_context(STYLE | {"svg.hashsalt": salt}):
                return _svg(draw(results), label)

        return drawn

    return wrap


class Style(NamedTuple):
    """How every plot shows a row."""

    colour: str
    marker: str
    line: Any


def row_styles(results: Results) -> dict[str, Style]:
    """Return one style a row, the same in every plot: the reference in ink, the others in the order of the recipe."""
    reference, *others = sorted(_names(results), key=lambda name: name != results["reference"])
    styles = [
        Style(
            COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)], LINES[i // len(COLOURS) % len(LINES)]
        )
        for i in range(len(others))
    ]
    return {reference: Style(REFERENCE_COLOUR, MARKERS[0], LINES[0]), **dict(zip(others, styles, strict=True))}


@_drawn("Score per family with 95 % intervals, one line per row", salt="families")
def score_per_family(results: Results) -> Figure:
    """Draw a panel per family, a line per row: exact match in %, the mean over seeds with its 95 % interval."""
    summary, names, styles = results["summary"], _names(results), row_styles(results)
    panels = [*results["fine"], "fine mean", *results["coarse"]]
    figure = _figure(height=0.62 + 0.36 * len(names))
    axes = figure.subplots(1, len(panels), sharey=True, gridspec_kw={"wspace": 0.14})
    for axis, panel in zip(axes, panels, strict=True):
        is_mean = panel == "fine mean"
        for place, name in enumerate(names):
            score = summary["means"][name] if is_mean else summary["families"][name][panel]
            _interval(axis, place, score, styles[name])
        axis.set_title(
            panel, fontweight="bold" if is_mean else "normal", color=GREY if panel in results["coarse"] else INK, pad=6
        )
        axis.set_xlim(-4, 104)
        axis.set_xticks([0, 50, 100])
        axis.set_ylim(len(names) - 0.45, -0.65)
        axis.grid(axis="y")
        axis.set_facecolor("#f7f8f9" if is_mean else "none")
        _bare(axis)
    axes[0].set_yticks(range(len(names)), names)
    return figure


@_drawn("Fine-family score against vision tokens per page", salt="tokens")
def score_against_tokens(results: Results) -> Figure:
    """Draw the fine-family mean against the vision tokens a page costs, on a logarithmic axis."""
    summary, names, styles = results["summary"], _names(results), row_styles(results)
    tokens = {row["name"]: row["tokens"] for row in results["rows"]}
    figure = _figure(height=max(3.1, _legend_height(names)))
    axis = figure.subplots()
    axis.axhline(
        100 * summary["means"][results["reference"]]["value"],
        color=REFERENCE_COLOUR,
        linewidth=0.8,
        linestyle=(0, (4, 4)),
    )
    for name in names:
        equals = [other for other in names if tokens[other] == tokens[name]]
        step = min(1.05, SPREAD ** (1 / max(len(equals) - 1, 1)))
        x = tokens[name] * step ** (equals.index(name) - (len(equals) - 1) / 2)
        mean, value = summary["means"][name], 100 * summary["means"][name]["value"]
        low, high = (100 * end for end in mean["ci95"])
        axis.errorbar(
            x,
            value,
            yerr=[[max(value - low, 0)], [max(high - value, 0)]],
            color=styles[name].colour,
            marker=styles[name].marker,
            markersize=6,
            linewidth=1.2,
            capsize=0,
            linestyle="none",
            label=name,
        )
    axis.set_xscale("log", base=2)
    ticks = sorted(set(tokens.values()))
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlim(min(ticks) / 1.35, max(ticks) * 1.35)
    axis.set_ylim(-2, 104)
    axis.grid(axis="y")
    axis.set_xlabel("vision tokens per page")
    axis.set_ylabel("fine families, exact match %")
    _legend(axis)
    _bare(axis)
    return figure


@_drawn("Points between pairs of rows, with 95 % intervals", salt="differences")
def differences(results: Results) -> Figure:
    """Draw how many points of the fine-family mean the first row of every named pair is ahead of the other one."""
    pairs, styles = results["summary"]["differences"], row_styles(results)
    figure = _figure(height=0.8 + 0.3 * len(pairs))
    axis = figure.subplots()
    axis.axvline(0, color=GREY, linewidth=0.8)
    for place, pair in enumerate(pairs):
        low, high = (100 * end for end in pair["ci95"])
        value, style = 100 * pair["difference"], styles[pair["row"]]
        axis.plot([low, high], [place, place], color=style.colour, linewidth=1.6, solid_capstyle="round")
        axis.plot(value, place, color=style.colour, marker=style.marker, markersize=5.5)
        axis.annotate(
            f"{value:+.1f} [{low:+.1f}, {high:+.1f}]",
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=7.5,
            color=GREY,
            annotation_clip=False,
        )
    axis.set_yticks(range(len(pairs)), [f"{pair['row']} \u2212 {pair['other']}" for pair in pairs])
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    axis.grid(axis="y")
    axis.set_xlabel("points of the fine mean; right of the line the first row is ahead")
    _bare(axis)
    return figure


@_drawn("Training loss against step, one line per row", salt="curves")
def learning_curves(results: Results) -> Figure:
    """Draw the training loss of every row against the step: the mean over seeds, and their range where there are several.

    What is known of the model that a row starts from stands left of step 0.
    """
    styles, names = row_styles(results), _names(results)
    figure = _figure(height=max(2.9, _legend_height(names)))
    axis = figure.subplots()
    for name in names:
        curves = list(results["curves"][name].values())
        steps = [step for step in curves[0]["step"] if all(step in curve["step"] for curve in curves)]
        losses = [[curve["loss"][curve["step"].index(step)] for curve in curves] for step in steps]
        if len(curves) > 1:
            axis.fill_between(
                steps,
                [min(loss) for loss in losses],
                [max(loss) for loss in losses],
                color=styles[name].colour,
                alpha=0.15,
                linewidth=0,
            )
        axis.plot(
            steps,
            [sum(loss) / len(loss) for loss in losses],
            color=styles[name].colour,
            linestyle=styles[name].line,
            linewidth=1.5,
            label=name,
        )
        if start := results["starts"].get(name):
            before = [step - start["steps"] for step in start["curve"]["step"]]
            axis.plot(
                before, start["curve"]["loss"], color=styles[name].colour, linestyle=styles[name].line, linewidth=1.0
            )
    if results["starts"]:
        axis.axvline(0, color=GREY, linewidth=0.8)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(axis="y")
    axis.set_xlabel("training step")
    axis.set_ylabel("loss per answer token")
    _legend(axis)
    _bare(axis)
    return figure


def _names(results: Results) -> list[str]:
    return list(dict.fromkeys(row["name"] for row in results["rows"]))


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH_INCHES, height), layout="constrained")


def _legend_height(names: list[str]) -> float:
    """Inches that a legend of these rows takes."""
    return 0.2 * len(names) + 0.35


def _interval(axis: Axes, place: int, score: Mapping[str, Any], style: Style) -> None:
    value, (low, high) = 100 * score["value"], (100 * end for end in score["ci95"])
    axis.plot([low, high], [place, place], color=style.colour, linewidth=1.6, solid_capstyle="round")
    axis.plot(value, place, color=style.colour, marker=style.marker, markersize=5.5)
    side = "right" if value > 80 else "left" if value < 20 else "center"
    axis.annotate(
        f"{value:.1f}", (value, place), xytext=(0, 6), textcoords="offset points", ha=side, fontsize=7.5, color=GREY
    )


def _legend(axis: Axes) -> None:
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.2, labelspacing=0.5)


def _bare(axis: Axes) -> None:
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _svg(figure: Figure, label: str) -> str:
    """Return the figure as an `<svg>` element that stands inside HTML: no prologue, no metadata, no address, no fixed size."""
    FigureCanvasSVG(figure)
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', rf'\1 role="img" aria-label="{label}"', svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*", f"font-family: {FONTS}", svg)
    svg = re.sub(r"(font: [^;\"]*?[\d.]+px) [^;\"]*", rf"\1 {FONTS}", svg)
    return svg.strip()
