"""`report.html`: a comparison as a short paper section, in one file that works offline.

What it says in words is computed from the results, bad news included: a row that recovers nothing, an interval that covers zero and a
layout score that was hurt are written out like the rest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vision_remember.evaluation import figures, html
from vision_remember.evaluation.html import Markup, element, joined
from vision_remember.evaluation.specimens import Specimen
from vision_remember.evaluation.wording import (
    apart_sentence,
    average_sentence,
    difference_sentence,
    ends,
    gain_sentences,
    layout_sentence,
    no_gain_sentences,
    starts_sentence,
)

Results = Mapping[str, Any]

PAIRS_AT_THE_TOP = 5


def render_report(results: Results, specimens: Sequence[Specimen]) -> str:
    """Return the report as HTML.

    Args:
        results: the content of `results.json`.
        specimens: the pages to show.
    """
    return html.document(
        f"Comparison {results['name']}",
        _opening(results),
        element("h2", "What every row scored"),
        _scores(results),
        _figure(figures.score_per_family(results), 1, "Score per family.", _scores_caption(results)),
        element("h2", "What a token buys"),
        _tokens(results),
        _figure(
            figures.score_against_tokens(results),
            2,
            "Score against tokens.",
            "Mean of the fine families against the vision tokens one page costs; the dashed line is the reference. "
            "Rows with equal tokens are set side by side.",
        ),
        _costs(results),
        *_pairs(results),
        element("h2", "How fast it learns"),
        _figure(
            figures.learning_curves(results),
            3 + bool(results["summary"]["differences"]),
            "Learning curves.",
            "Training loss per answer token, averaged over neighbouring steps"
            + ("; the band is the range over seeds." if len(_seeds(results)) > 1 else ".")
            + " All rows saw the same samples in the same order."
            + (" Left of zero: the stage before, whose model a row starts from." if results["starts"] else ""),
        ),
        *_pages(results, specimens),
        element("h2", "How it was measured"),
        _method(results),
    )


def _opening(results: Results) -> Markup:
    summary, reference = results["summary"], results["reference"]
    tokens = _tokens_of(results)
    numbers = [_number(summary["means"][reference]["value"], f"{reference}, {tokens[reference]} tokens per page")]
    gains = {name: value for name, value in summary["recovered"].items() if value["mean"] is not None}
    sentences = [
        f"{len(_names(results))} models, trained alike, read {_questions(results):,} questions on pages they had never seen."
    ]
    averages = {title: one for title, one in summary["averages"].items() if one["mean"] is not None}
    numbers += [
        _number(
            one["mean"],
            f"of the loss recovered by {title}, mean of {len(one['rows'])} rows, 95 % interval {ends(one['ci95'], percent=True)}",
        )
        for title, one in averages.items()
    ]
    if on_par := [name for name in gains if name not in results["apart"]]:
        first = on_par[0]  # of the recipe, not the best of the results
        gain, twin = gains[first], gains[first]["compressed"]
        if not averages:
            spread = f"95 % interval {ends(gain['ci95'], percent=True)}"
            numbers += [
                _number(summary["means"][twin]["value"], f"{twin}, {tokens[twin]} tokens"),
                _number(summary["means"][first]["value"], f"{first}, {tokens[first]} tokens"),
                _number(gain["mean"], f"of the loss recovered by {first}, {spread}"),
            ]
        sentences.append(
            f"Compressing a page from {tokens[reference]} to {tokens[twin]} vision tokens costs {twin} "
            f"{100 * gain['lead']:.1f} points of exact match on fine detail; {first} wins back {100 * gain['mean']:.0f} % of that."
        )
    sentences += [average_sentence(title, average) for title, average in averages.items()]
    if len(summary["differences"]) <= PAIRS_AT_THE_TOP:
        sentences += [difference_sentence(pair) for pair in summary["differences"]]
    sentences += no_gain_sentences(summary["recovered"])
    return joined(
        (
            element("p", f"Vision Remember / comparison {results['name']}", css="kicker"),
            element("h1", "Does looking again bring the detail back?"),
            element("p", " ".join(sentences), css="standfirst"),
            element("div", *numbers, css="numbers"),
        )
    )


def _scores(results: Results) -> Markup:
    summary, fine, coarse, tokens = results["summary"], results["fine"], results["coarse"], _tokens_of(results)
    body = []
    for name in _names(results):
        families = summary["families"][name]
        body.append(
            [
                _named(results, name),
                tokens[name],
                *(_cell(families[family]) for family in fine),
                element("b", _cell(summary["means"][name])),
                *(_cell(families[family]) for family in coarse),
                _gain_cell(summary["recovered"].get(name)),
            ]
        )
    caption = (
        "Exact match in %, with 95 % intervals below. Recovered: the share of the points lost to compression that the row wins back, "
        "against the row with the same projector and tokens and no re-fusion."
    )
    return _table(1, ["Row", "Tokens", *fine, "Fine mean", *coarse, "Recovered"], body, caption)


def _costs(results: Results) -> Markup:
    body = []
    for name in _names(results):
        rows = [row for row in results["rows"] if row["name"] == name]
        seconds = sum(row["train_seconds"] for row in rows) / len(rows)
        costs = [f"{rows[0]['trainable_parameters']:,}", f"{seconds:,.0f} s"]
        costs += [f"{rows[0]['prefill_flops'] / 1e9:.2f}", f"{rows[0]['prefill_ms']:.1f} ms"]
        body.append([_named(results, name), rows[0]["projector"], rows[0]["refusion"], rows[0]["tokens"], *costs])
    devices = sorted({row["device"] for row in results["rows"] if row["device"]})
    where = f", on {' and '.join(devices)}" if devices else ""
    caption = f"What a row costs. Training: mean over seeds{where}. Prefill: encoder, projector and decoder for one page and one question."
    return _table(
        2,
        ["Row", "Projector", "Re-fusion", "Tokens", "Trained weights", "Training", "Prefill GFLOP", "Prefill"],
        body,
        caption,
    )


def _tokens(results: Results) -> Markup:
    summary = results["summary"]
    lines = [apart_sentence(name, reason) for name, reason in results["apart"].items()]
    lines += gain_sentences(summary["recovered"])
    lines += [average_sentence(title, average) for title, average in summary["averages"].items()]
    lines += [layout_sentence(name, layout) for name, layout in summary["layout"].items()]
    return element("ul", *(element("li", line) for line in lines)) if lines else Markup("")


def _pairs(results: Results) -> list[Markup]:
    pairs = results["summary"]["differences"]
    if not pairs:
        return []
    unsure = [difference_sentence(pair) for pair in pairs if pair["ci95"][0] <= 0 <= pair["ci95"][1]]
    caption = "Paired differences on the same pages, mean of the fine families, with 95 % intervals. " + " ".join(
        unsure
    )
    drawn = _figure(figures.differences(results), 3, "Row against row.", caption.strip())
    return [element("h2", "Row against row"), drawn]


def _pages(results: Results, specimens: Sequence[Specimen]) -> list[Markup]:
    if not specimens:
        return []
    rule = (
        "The first questions of each family on which the rows disagree, whatever the disagreement; a family on which they never "
        f"disagree is shown by its first questions. Split {results['summary']['split']}, seed {_seeds(results)[0]}. The frame marks "
        "where the answer stands; the models do not see it."
    )
    return [element("h2", "Pages and answers"), element("p", rule), *(_page(specimen) for specimen in specimens)]


def _page(specimen: Specimen) -> Markup:
    sheet = [html.png(specimen.png, f"{specimen.family} page: {specimen.question}")]
    if specimen.evidence is not None:
        (x0, y0, x1, y1), (width, height) = specimen.evidence, specimen.size
        place = f"left:{100 * x0 / width:.2f}%;top:{100 * y0 / height:.2f}%;"
        place += f"width:{100 * (x1 - x0) / width:.2f}%;height:{100 * (y1 - y0) / height:.2f}%"
        sheet.append(element("span", css="evidence", style=place))
    answers = [
        element(
            "li",
            element("i", "\u2713" if right else "\u2717"),
            element("span", row),
            element("q", said),
            css="right" if right else "wrong",
        )
        for row, (said, right) in specimen.predictions.items()
    ]
    words = [
        element("h3", specimen.family),
        element("p", specimen.question, css="question"),
        element("p", f"On the page: {specimen.answer}", css="gold"),
        element("ul", *answers),
    ]
    return element("div", element("p", *sheet, css="sheet"), element("div", *words), css="page")


def _method(results: Results) -> Markup:
    definitions = results["definitions"]
    pairs = [
        ("Held equal", results["held_equal"]),
        *([("Trained before", starts_sentence(results["starts"]))] if results["starts"] else []),
        ("Seeds", ", ".join(map(str, _seeds(results)))),
        ("Pages", results["pages"]),
        ("Score", f"{definitions['value']}. Mean: {definitions['mean']}."),
        ("Recovered", definitions["recovered"]),
        ("Layout", definitions["layout"]),
        (
            "Intervals",
            definitions["ci95"]
            + ("" if len(_seeds(results)) > 1 else "; with one seed they do not cover training noise"),
        ),
        ("Prefill", definitions["prefill_ms"]),
        ("Prefill GFLOP", definitions["prefill_flops"]),
        ("Versions", ", ".join(f"{name} {number}" for name, number in results["versions"].items())),
        ("Commit", results["commit"] or "not known: this package ran outside a checkout"),
    ]
    return joined((html.definitions(pairs), element("p", "The command:"), element("pre", results["command"])))


def _figure(svg: str, number: int, title: str, caption: str) -> Markup:
    return element("figure", Markup(svg), element("figcaption", element("b", f"Figure {number}. {title} "), caption))


def _scores_caption(results: Results) -> str:
    spread = "pages and seeds" if len(_seeds(results)) > 1 else "pages (one seed: training noise is not covered)"
    coarse = ", ".join(results["coarse"]) or "none"
    return f"Exact match in % on the {results['summary']['split']} split; intervals cover {spread}. Coarse control: {coarse}."


def _number(value: float, caption: str) -> Markup:
    return element("div", element("b", f"{100 * value:.1f} %"), caption)


def _cell(score: Mapping[str, Any]) -> Markup:
    low, high = score["ci95"]
    return joined((f"{100 * score['value']:.1f}", element("small", f"{100 * low:.1f}\u2013{100 * high:.1f}")))


def _gain_cell(gain: Mapping[str, Any] | None) -> Markup:
    if gain is None or gain["mean"] is None:
        return joined(("\u2013",))
    return joined((f"{gain['mean']:.2f}", element("small", ends(gain["ci95"]))))


def _table(number: int, head: Sequence[object], body: Sequence[Sequence[object]], caption: str) -> Markup:
    return joined((html.table(head, body), element("p", element("b", f"Table {number}. "), caption, css="caption")))


def _named(results: Results, name: str) -> Markup:
    swatch = element("span", css="swatch", style=f"background:{figures.row_styles(results)[name].colour}")
    reason = results["apart"].get(name)
    return joined((swatch, name, element("small", f"apart: {reason}") if reason else ""))


def _names(results: Results) -> list[str]:
    return list(dict.fromkeys(row["name"] for row in results["rows"]))


def _seeds(results: Results) -> list[int]:
    return list(dict.fromkeys(row["seed"] for row in results["rows"]))


def _tokens_of(results: Results) -> dict[str, int]:
    return {row["name"]: row["tokens"] for row in results["rows"]}


def _questions(results: Results) -> int:
    families = results["summary"]["families"][results["reference"]]
    return sum(score["n"] for score in families.values())
