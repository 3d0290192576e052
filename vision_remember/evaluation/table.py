"""Scores, suites and comparisons as tables on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from vision_remember.evaluation.runner import Evaluation
from vision_remember.evaluation.wording import (
    apart_sentence,
    average_sentence,
    difference_sentence,
    ends,
    gain_sentences,
    layout_sentence,
    no_gain_sentences,
)


def results_table(results: Mapping[str, Any]) -> Group:
    """Return the summary of `results.json` as a rich table: means over seeds in %, intervals, recovery, layout, costs."""
    summary, fine, coarse = results["summary"], results["fine"], results["coarse"]
    rows = {row["name"]: row for row in reversed(results["rows"])}
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{results['name']}: exact match in %, {summary['split']} split",
        title_justify="left",
    )
    table.add_column("row", overflow="fold")
    for head in ("tokens", *fine, "fine mean", *coarse, "recovered", "trained", "GFLOP", "prefill"):
        table.add_column(head, justify="right")
    for name in dict.fromkeys(row["name"] for row in results["rows"]):
        if name in results["apart"]:
            table.add_section()
        families, mean = summary["families"][name], summary["means"][name]
        low, high = (100 * end for end in mean["ci95"])
        table.add_row(
            Text(name),
            str(rows[name]["tokens"]),
            *(f"{100 * families[family]['value']:.1f}" for family in fine),
            Text(f"{100 * mean['value']:.1f} [{low:.1f}, {high:.1f}]", style="bold"),
            *(f"{100 * families[family]['value']:.1f}" for family in coarse),
            _recovered(summary["recovered"].get(name)),
            f"{rows[name]['trainable_parameters']:,}",
            f"{rows[name]['prefill_flops'] / 1e9:.2f}",
            f"{rows[name]['prefill_ms']:.1f} ms",
        )
    sentences = [apart_sentence(name, reason) for name, reason in results["apart"].items()]
    sentences += gain_sentences(summary["recovered"]) + no_gain_sentences(summary["recovered"])
    sentences += [average_sentence(title, average) for title, average in summary["averages"].items()]
    sentences += [difference_sentence(difference) for difference in summary["differences"]]
    sentences += [layout_sentence(name, layout) for name, layout in summary["layout"].items()]
    return Group(table, *(Text(sentence, style="dim") for sentence in sentences))


def scores_table(result: Evaluation) -> Table:
    """Return the scores of one model on one task, per family in %, and what papers print about it."""
    has_anls = any("anls" in score for score in result.scores.values())
    table = Table("family", "score %" if result.totals else "exact match %", "95 %", box=None)
    for head in ("ANLS %", "n") if has_anls else ("n",):
        table.add_column(head)
    for family, score in result.scores.items():
        anls = [f"{100 * score['anls']['value']:.1f}"] if has_anls else []
        table.add_row(family, f"{100 * score['value']:.1f}", _ends(score), *anls, str(score["n"]))
    table.add_row("mean", f"{100 * result.mean['value']:.1f}", _ends(result.mean))
    for name, value in result.totals.items():
        if name not in result.scores:
            table.add_row(Text(name, style="bold"), f"{value:.1f}")
    return table


def headlines_table(results: Mapping[str, Evaluation]) -> Table:
    """Return what one model reached on every task of a suite."""
    table = Table("task", "headline", "value", "mean score %", "95 %", "n", box=None)
    for task, result in results.items():
        name, value = next(iter(result.totals.items()), ("exact match", 100 * result.mean["value"]))
        mean = f"{100 * result.mean['value']:.1f}"
        table.add_row(task, name, f"{value:.1f}", mean, _ends(result.mean), str(len(result.records)))
    return table


def _ends(score: Mapping[str, Any]) -> str:
    low, high = (100 * end for end in score["ci95"])
    return f"{low:.1f} to {high:.1f}"


def _recovered(gain: Mapping[str, Any] | None) -> Text:
    return Text("-" if gain is None or gain["mean"] is None else f"{gain['mean']:.2f} ({ends(gain['ci95'])})")
