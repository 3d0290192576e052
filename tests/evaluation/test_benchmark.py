import json
from pathlib import Path

import pytest

from tests.evaluation import copies
from vision_remember.evaluation.benchmark import Item, score_benchmark, scored_answer
from vision_remember.evaluation.tasks import load_benchmark


def test_a_limit_takes_the_first_questions(tmp_path: Path) -> None:
    path = str(copies.write_json(tmp_path / "copy", "docvqa"))
    assert [item.id for item in load_benchmark({"type": "docvqa", "path": path, "limit": 2})] == ["0", "1"]


def test_two_questions_of_one_id_are_refused(tmp_path: Path) -> None:
    folder = copies.write_json(tmp_path / "copy", "docvqa")
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    (folder / "rows.json").write_text(json.dumps([*rows, rows[0]]), encoding="utf-8")
    with pytest.raises(ValueError, match="rows.json#3: a second question has the id '0'"):
        load_benchmark({"type": "docvqa", "path": str(folder)})


def test_a_broken_picture_names_its_question(tmp_path: Path) -> None:
    folder = copies.write_json(tmp_path / "copy", "docvqa")
    (folder / "images" / "1.png").write_bytes(b"no picture")
    items = load_benchmark({"type": "docvqa", "path": str(folder)})
    assert items[0].request().images[0].size == (6, 6)
    with pytest.raises(ValueError, match="question 1: "):
        items[1].request()


def test_the_mean_is_over_questions_and_families_have_their_own() -> None:
    said = [("red", "a"), ("red", "a"), ("red", "a"), ("blue", "b")]
    items = [
        Item(id=str(n), page=str(n), family=family, text="?", answers=("red",), picture=bytes)
        for n, (_, family) in enumerate(said)
    ]
    scored = [
        scored_answer(item, text, lambda words, item: words == item.answers[0])
        for item, (text, _) in zip(items, said, strict=True)
    ]
    families, mean = score_benchmark(scored, "made_up")
    assert mean["value"] == 0.75
    assert {family: (score["value"], score["n"]) for family, score in families.items()} == {
        "a": (1.0, 3),
        "b": (0.0, 1),
    }
