"""`report.html` of an analysis: a short paper section in one file that works offline.

Every sentence with a number is computed from the measurements, and what was not found is written out like what was: a gain whose interval
covers zero, a method that records no attention, images on which nothing can be probed.
"""

import base64
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import shorten
from typing import Any

from vision_remember.analysis.figures import Drawn
from vision_remember.analysis.measurement import Measurement, ahead, without_refusion
from vision_remember.analysis.recording import AS_IT_IS, MUTED
from vision_remember.analysis.sheets import Sheet
from vision_remember.analysis.wording import (
    CAPTIONS,
    DEFINITIONS,
    density_sentence,
    end,
    ink_sentence,
    looks_sentence,
    opening,
    reading_sentence,
    similarity_sentence,
    subject,
)
from vision_remember.evaluation import html
from vision_remember.evaluation.bootstrap import Interval
from vision_remember.evaluation.html import Markup, element, joined

MOST_LETTERS = 80  # of a model's answer


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownPage:
    """A page that the report shows: where one model's tokens looked on it, and what the model then said."""

    label: str
    sheet: Sheet
    said: str
    drawn: Drawn


def render_report(
    measurements: Sequence[Measurement],
    figures: Mapping[str, Drawn],
    pages: Sequence[ShownPage],
    about: Mapping[str, Any],
) -> str:
    """Returns the report as HTML.

    Args:
        measurements: One a model.
        figures: By name, of `figures.py`; without `characters` where nothing could be probed.
        pages: Those to show.
        about: What was done, as `analyse` returns it: `sheets`, `source`, `command` and `versions`.
    """
    numbers = itertools.count(1)

    def figure(name: str) -> Markup:
        title, caption = CAPTIONS[name]
        return _figure(figures[name], next(numbers), title, caption)

    sections = [_opening(measurements, about)]
    if any(MUTED in one.share for one in measurements):
        sections.append(element("p", DEFINITIONS["muted"]))
    if "characters" in figures:
        sections += [
            element("h2", "What can be read off a token"),
            element("p", DEFINITIONS["probe"]),
            figure("characters"),
            *(element("p", reading_sentence(one, measurements)) for one in measurements),
            _reading_table(measurements),
        ]
    sections += [
        element("h2", "How closely the text looks"),
        element("p", DEFINITIONS["density"]),
        figure("attention"),
        *(element("p", density_sentence(one)) for one in measurements),
        element("h2", "What the tokens resemble"),
        element("p", DEFINITIONS["similarity"]),
        figure("similarity"),
        *(element("p", similarity_sentence(one)) for one in measurements),
        element("h2", "Where the tokens look"),
        *(element("p", looks_sentence(one)) for one in measurements),
        *(element("p", ink_sentence(one)) for one in measurements if one.ink),
        *(_page(page, next(numbers)) for page in pages),
        element("h2", "How it was measured"),
        _method(measurements, about),
    ]
    return html.document("Analysis of forgetting", *sections)


def _opening(measurements: Sequence[Measurement], about: Mapping[str, Any]) -> Markup:
    first = subject(measurements)
    numbers = []
    if (found := first.characters) is not None:
        numbers = [
            _number(found.encoder, "of the characters can be read off the encoder's features"),
            _number(
                found.read[AS_IT_IS][0], f"off the {first.token_grid.num_cells} vision tokens that enter the decoder"
            ),
            _number(found.read[AS_IT_IS][-1], f"after {end(first)}"),
        ]
        if (plain := without_refusion(first, measurements)) and plain.characters is not None:
            numbers.append(_number(plain.characters.read[AS_IT_IS][-1], f"after {end(plain)} of {plain.label}"))
    return joined(
        (
            element("p", f"Vision Remember / analysis of {', '.join(one.label for one in measurements)}", css="kicker"),
            element("h1", "What do the vision tokens forget, and what do they get back?"),
            element("p", opening(measurements, about), css="standfirst"),
            element("div", *numbers, css="numbers") if numbers else "",
        )
    )


def _reading_table(measurements: Sequence[Measurement]) -> Markup:
    head = [
        "Model",
        "Tokens",
        "Encoder",
        "Entering the decoder",
        "At the end",
        "Ahead of no re-fusion",
        "Muted",
        "Muting costs",
    ]
    body = []
    for one in measurements:
        found = one.characters
        assert found is not None
        read = found.read
        more, muted, costs = ("\u2013",) * 3
        if (plain := without_refusion(one, measurements)) and (curve := ahead(one, plain)):
            more = _cell(curve[-1], sign="+")
        if MUTED in read and found.muting is not None:
            muted, costs = _cell(read[MUTED][-1]), _cell(found.muting[-1])
        body.append(
            [
                one.label,
                one.token_grid.num_cells,
                _cell(found.encoder),
                _cell(read[AS_IT_IS][0]),
                _cell(read[AS_IT_IS][-1]),
                more,
                muted,
                costs,
            ]
        )
    caption = (
        "Characters read by linear probes, % of those on the held-out pages, and points between; below, 95 % intervals over pages. "
        "The end is the last layer, or the last one before a method drops tokens."
    )
    return joined((html.table(head, body), element("p", element("b", "Table 1. "), caption, css="caption")))


def _page(page: ShownPage, number: int) -> Markup:
    said = f"The model says \u201c{shorten(page.said, MOST_LETTERS)}\u201d"
    said += "." if page.sheet.answer is None else f"; the page says \u201c{page.sheet.answer}\u201d, in the frame."
    return _figure(page.drawn, number, f"{page.label}: {page.sheet.question}", f"{said} {CAPTIONS['page'][1]}")


def _figure(drawn: Drawn, number: int, title: str, caption: str) -> Markup:
    data = base64.b64encode(drawn.svg.encode()).decode()
    image = Markup(
        f'<img style="width:100%;height:auto" src="data:image/svg+xml;base64,{data}" alt="{escape(title, quote=True)}">'
    )
    files = f" Files: {drawn.name}.png, .svg, .csv."
    return element("figure", image, element("figcaption", element("b", f"Figure {number}. {title} "), caption, files))


def _method(measurements: Sequence[Measurement], about: Mapping[str, Any]) -> Markup:
    pairs: list[tuple[object, object]] = [("Pages", about["source"])]
    if (found := measurements[0].characters) is not None:
        pairs.append(
            (
                "Probes",
                f"fitted on {found.num_fitted} pages, scored on {found.num_held_out} others with {found.num_characters:,} characters; "
                + DEFINITIONS["ridge"],
            )
        )
    pairs += [
        ("Intervals", DEFINITIONS["intervals"]),
        ("Similarity", DEFINITIONS["cka"]),
        ("Ours, not the paper's", DEFINITIONS["ours"]),
        *((f"Model {one.label}", _model(one)) for one in measurements),
        ("Versions", ", ".join(f"{name} {number}" for name, number in about["versions"].items())),
    ]
    return joined((html.definitions(pairs), element("p", "The command:"), element("pre", about["command"])))


def _model(one: Measurement) -> str:
    places = ", ".join(str(layer) for layer in one.insertions)
    acts = f"{one.refusion} after decoder layers {places}" if one.insertions else "no re-fusion"
    return (
        f"{one.patch_grid} patches, {one.token_grid} vision tokens ({one.compression:g} to a token); {acts}; features are the "
        f"encoder's hidden state {one.level}"
    )


def _number(value: Interval, caption: str) -> Markup:
    return element("div", element("b", f"{100 * value.value:.1f} %"), caption)


def _cell(value: Interval, sign: str = "") -> Markup:
    ends = f"{100 * value.low:{sign}.1f} to {100 * value.high:{sign}.1f}"
    return joined((f"{100 * value.value:{sign}.1f}", element("small", ends)))
