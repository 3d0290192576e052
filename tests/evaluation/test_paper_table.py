import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from tests.evaluation import made_up
from vision_remember import plugins
from vision_remember.evaluation.paper_table import MARKS, PUBLISHED, paper_table, tables
from vision_remember.evaluation.tasks import ROOM, benchmark


def _write(path: Path, task: str, totals: dict, **options: object) -> None:
    scores = {
        "task": {"type": task, "path": "x", **options},
        "totals": totals,
        "questions": 50,
        "architecture": {"tokens": 16},
    }
    path.mkdir(parents=True)
    (path / "scores.json").write_text(json.dumps(scores), encoding="utf-8")


def test_a_run_stands_beside_the_published_rows_and_every_cell_says_what_it_is(tmp_path: Path) -> None:
    _write(tmp_path / "mine" / "gqa", "gqa", {"accuracy": 61.25}, limit=50)
    _write(tmp_path / "mine" / "mme", "mme", {"perception": 1200.0})
    found = paper_table(tmp_path)
    first = found["groups"][0]
    published = next(row for row in first["rows"] if row["name"] == "TokenPacker" and row["tokens"] == 144)
    assert published["cells"]["GQA"] == {"value": 61.8, "status": "published"}
    [mine] = [row for row in first["rows"] if row["name"] == "mine"]
    assert mine["tokens"] == 16
    assert mine["cells"]["GQA"] == {"value": 61.25, "status": "measured here, in part", "questions": 50, "limit": 50}
    assert mine["cells"]["POPE"] == {"value": None, "status": "not run"}
    cells = [cell for group in found["groups"] for row in group["rows"] for cell in row["cells"].values()]
    assert {cell["status"] for cell in cells} == set(MARKS)
    [also] = [row for row in found["groups"][1]["rows"] if row["name"] == "mine"]
    assert (also["cells"]["MME-P"]["value"], also["cells"]["MME-C"]["value"]) == (1200.0, None)
    assert all((cell["value"] is None) == cell["status"].startswith("not ") for cell in cells)


def test_what_is_known_second_hand_is_marked(tmp_path: Path) -> None:
    rows = [
        row for group in paper_table(tmp_path)["groups"] for row in group["rows"] if row["name"] == "DeepSeek-VL-7B"
    ]
    assert [row["cells"]["MMBench"]["status"] for row in rows] == ["published, unverified"] * 2


def test_without_runs_our_row_is_there_and_not_run(tmp_path: Path) -> None:
    for group in paper_table(tmp_path)["groups"]:
        assert {cell["status"] for cell in group["rows"][-1]["cells"].values()} == {"not run"}


def test_the_claims_stand_beside_the_same_differences_of_our_comparisons(tmp_path: Path) -> None:
    (tmp_path / "compare").mkdir()
    results = made_up.results(pages=10)
    (tmp_path / "compare" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    claims = paper_table(tmp_path)["claims"]
    assert [claim["value"] for claim in claims if "published" in claim["status"]] == [3.9, 3.4, 5.7, 2.7]
    assert {claim["status"] for claim in claims[1::2]} == {"not run"}
    for row in results["rows"]:
        if row["refusion"] == "none" and row["projector"] == "avg_pool":
            row["refusion"] = "deepstack"
    (tmp_path / "compare" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    ours = paper_table(tmp_path)["claims"][1]
    assert ours["status"] == "measured here" and "avg_pool + remember" in ours["ahead_of"]
    [pair] = results["summary"]["differences"]
    assert ours["value"] == 100 * pair["difference"] and ours["ci95"] == [100 * end for end in pair["ci95"]]
    assert f"{ours['value']:+.1f}" in _printed(paper_table(tmp_path))


def test_people_see_marks_and_every_column_fits(tmp_path: Path) -> None:
    _write(tmp_path / "mine" / "gqa", "gqa", {"accuracy": 61.25})
    text = _printed(paper_table(tmp_path))
    assert "61.2 *" in text and "456 ?" in text and "1303" in text and "·" in text
    for group in paper_table(tmp_path)["groups"]:
        [head] = (line for line in text.splitlines() if line.split() == ["model", "tokens", *group["columns"]])
        assert len(head) <= 120


def _printed(found: dict) -> str:
    file = io.StringIO()
    Console(width=120, file=file).print(tables(found))
    return file.getvalue()


def test_every_column_of_ours_is_a_total_of_a_benchmark() -> None:
    columns = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))["columns"]
    assert {task for task, _ in columns.values()} == {name for name in plugins.names(ROOM) if benchmark(name)}


def test_published_rows_fit_their_columns() -> None:
    for group in yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))["groups"]:
        for row in group["rows"]:
            assert len(row["scores"]) <= len(group["columns"]), row["name"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("scores.json", "{}"),
        ("scores.json", '{"task": "x", "totals": {}, "questions": 1, "architecture": {"tokens": 1}}'),
        ("results.json", "{}"),
        ("results.json", '{"rows": [{"name": "a"}], "summary": {"differences": [{"row": "a", "other": "a"}]}}'),
    ],
)
def test_a_file_of_another_make_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{name} lacks"):
        paper_table(tmp_path)
    with pytest.raises(ValueError, match="no folder"):
        paper_table(tmp_path / "none")
