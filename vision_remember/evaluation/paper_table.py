"""`vision-remember paper-table`: published figures and our own runs side by side, every cell marked with where it comes from.

A cell is *published* (the source said so), *published, unverified* (known second hand), *measured here* (read from the `scores.json` of a
run, never typed), *measured here, in part* (on its first questions only), *not published* or *not run*. Published figures stand in
`published.yaml`; runs are found below a folder.

Published figures come from other prompts, splits and judges than ours (`docs/benchmarks.md`): read a row, not a difference of half a point.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

PUBLISHED = Path(__file__).with_name("published.yaml")
MARKS = {
    "published": "",
    "published, unverified": " ?",
    "measured here": " *",
    "measured here, in part": " +",
    "not published": "-",
    "not run": "·",
}
Row = dict[str, Any]


def paper_table(runs: str | Path) -> dict[str, Any]:
    """Lay the runs of a folder beside the published figures.

    Args:
        runs: folder, searched at any depth for `scores.json` of benchmarks and `results.json` of comparisons.

    Returns:
        `{"groups": [{"title", "columns", "rows": [{"name", "tokens", "source", "cells": {column: cell}}]}], "claims": [...]}`; a cell is
        `{"value", "status"}`, a measured one also has `"questions"` and `"limit"`. A claim is `{"ahead_of", "value", "ci95", "status",
        "where"}`; ours are about the fine families of a comparison of synthetic pages, the paper's about its benchmarks.

    Raises:
        ValueError: no such folder, or a scores file that is not ours.
    """
    if not Path(runs).is_dir():
        raise ValueError(f"no folder {runs}: give the one that `evaluate --suite DIR --out` wrote into")
    published = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    measured = _measured(Path(runs), published["columns"])
    return {
        "groups": [_group(group, measured) for group in published["groups"]],
        "claims": _claims(published, Path(runs)),
    }


def tables(found: Mapping[str, Any]) -> Group:
    """What `paper_table` found, for people."""
    parts: list[Table | Text] = [_table(group) for group in found["groups"]]
    claims = Table(title="points that remember is ahead", title_justify="left", box=box.SIMPLE_HEAD)
    for head in ("of", "points", "95 %", "status", "where"):
        claims.add_column(head, justify="right" if head in ("points", "95 %") else "left", overflow="fold")
    for claim in found["claims"]:
        points = "" if claim["value"] is None else f"{claim['value']:+.1f}"
        spread = "" if claim["ci95"] is None else "{:+.1f} to {:+.1f}".format(*claim["ci95"])
        claims.add_row(claim["ahead_of"], points, spread, claim["status"], claim["where"])
    marks = (
        "* measured here; + on the first questions only; · not run; ? published, known second hand only; - not published; all "
        "other figures as published. Points: the paper's over its benchmarks, ours over the fine families of synthetic pages"
    )
    return Group(*parts, claims, Text(marks, style="dim"))


def _table(group: Mapping[str, Any]) -> Table:
    table = Table(title=group["title"], title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    for head in ("tokens", *group["columns"]):
        table.add_column(head, justify="right", no_wrap=True)
    for row in group["rows"]:
        tokens = "" if row["tokens"] is None else str(row["tokens"])
        table.add_row(Text(row["name"]), tokens, *(_shown(row["cells"][column]) for column in group["columns"]))
    return table


def _shown(cell: Mapping[str, Any]) -> Text:
    if cell["value"] is None:
        return Text(MARKS[cell["status"]], style="dim")
    number = f"{cell['value']:.0f}" if abs(cell["value"]) >= 200 else f"{cell['value']:.1f}"
    return Text(number + MARKS[cell["status"]], style="bold" if cell["status"].startswith("measured") else "")


def _group(group: Mapping[str, Any], measured: Mapping[str, Row]) -> dict[str, Any]:
    columns = group["columns"]
    rows = [_published_row(row, group) for row in group["rows"]]
    for name, run in measured.items():
        cells = {column: run["cells"].get(column, {"value": None, "status": "not run"}) for column in columns}
        rows.append({"name": name, "tokens": run["tokens"], "source": run["source"], "cells": cells})
    return {"title": group["title"], "columns": columns, "rows": rows}


def _published_row(row: Mapping[str, Any], group: Mapping[str, Any]) -> Row:
    shared = {**{key: group.get(key) for key in ("source", "read")}, **row}
    status = "published" if shared["read"] == "source" else "published, unverified"
    scores = dict(zip(group["columns"], row["scores"], strict=False))
    cells = {
        column: {"value": value, "status": "not published" if value is None else status}
        for column, value in ((column, scores.get(column)) for column in group["columns"])
    }
    return {"name": row["name"], "tokens": row.get("tokens"), "source": shared["source"], "cells": cells}


def _measured(runs: Path, columns: Mapping[str, Sequence[str]]) -> dict[str, Row]:
    """{run: row} of every folder with scores of benchmarks; one row of `not run` where there is none."""
    found: dict[str, Row] = {}
    for path in sorted(runs.rglob("scores.json")):
        scores = _read(path, {"task": ["type"], "totals": [], "questions": None, "architecture": ["tokens"]})
        task, limit = scores["task"]["type"], scores["task"].get("limit")
        folder = path.parent.parent if path.parent.name == task else path.parent
        name = str(folder.relative_to(runs)) if folder != runs else runs.name
        for column, (of_task, total) in columns.items():
            if of_task == task and total in scores["totals"]:
                row = found.setdefault(
                    name, {"tokens": scores["architecture"]["tokens"], "source": str(path), "cells": {}}
                )
                row["cells"][column] = {
                    "value": scores["totals"][total],
                    "status": "measured here" if limit is None else "measured here, in part",
                    "questions": scores["questions"],
                    "limit": limit,
                }
    return found or {f"ours (no run in {runs})": {"tokens": None, "source": str(runs), "cells": {}}}


def _read(path: Path, keys: Mapping[str, Sequence[str] | None]) -> dict[str, Any]:
    """The object of a file that has these keys; those that do not stand for None are objects with keys of their own."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): make it again, or move it away") from None
    if not isinstance(content, dict) or any(
        key not in content
        or (own is not None and not (isinstance(content[key], dict) and content[key].keys() >= set(own)))
        for key, own in keys.items()
    ):
        raise ValueError(
            f"{path} lacks {', '.join(keys)}: this version did not write it; make it again, or move it away"
        )
    return content


def _claims(published: Mapping[str, Any], runs: Path) -> list[dict[str, Any]]:
    """Every claim of the paper, and below it the same difference in each comparison of ours."""
    claims, status = [], "published" if published["claims"]["read"] == "source" else "published, unverified"
    shape = {"rows": None, "summary": ["differences"]}
    comparisons = {path: _read(path, shape) for path in sorted(runs.rglob("results.json"))}
    for claim in published["claims"]["ahead_of"]:
        rival = claim.get("refusion") or claim["projector"]
        about = {"ahead_of": rival, "value": claim["points"], "ci95": None, "status": status}
        claims.append({**about, "where": published["claims"]["source"]})
        ours = [
            {**measured, "status": "measured here", "where": str(path)}
            for path, results in comparisons.items()
            for measured in _differences(results, claim, path)
        ]
        claims += ours or [{"ahead_of": rival, "value": None, "ci95": None, "status": "not run", "where": str(runs)}]
    return claims


def _differences(results: Mapping[str, Any], claim: Mapping[str, Any], path: Path) -> Iterator[dict[str, Any]]:
    """Yield what a comparison says of its named pairs of remember and this rival with equal projectors, in points."""
    try:
        rows = {row["name"]: row for row in reversed(results["rows"])}
        for pair in results["summary"]["differences"]:
            ours, rival = rows[pair["row"]], rows[pair["other"]]
            same = all(ours[key] == rival[key] for key in ("projector_options", "overrides"))
            is_rival = rival["refusion"] == claim.get("refusion", "none") and claim.get("projector") in (
                None,
                rival["projector"],
            )
            if same and is_rival and ours["refusion"] == "remember":
                points, *spread = (100 * value for value in (pair["difference"], *pair["ci95"]))
                yield {"ahead_of": f"{rival['name']}, by {ours['name']}", "value": points, "ci95": spread}
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} lacks {error}: this version did not write it; make it again, or move it away"
        ) from None
