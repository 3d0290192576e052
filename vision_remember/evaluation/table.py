"""The table of a comparison on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from vision_remember.evaluation.wording import ends, gain_sentence, layout_sentence


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
    for head in ("tokens", *fine, "fine mean", *coarse, "recovered", "trained", "prefill"):
        table.add_column(head, justify="right")
    for name in dict.fromkeys(row["name"] for row in results["rows"]):
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
            f"{rows[name]['prefill_ms']:.1f} ms",
        )
    sentences = [gain_sentence(name, gain) for name, gain in summary["recovered"].items()]
    sentences += [layout_sentence(name, layout) for name, layout in summary["layout"].items()]
    return Group(table, *(Text(sentence, style="dim") for sentence in sentences))


def _recovered(gain: Mapping[str, Any] | None) -> Text:
    return Text("-" if gain is None or gain["mean"] is None else f"{gain['mean']:.2f} ({ends(gain['ci95'])})")
