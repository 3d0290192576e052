import json
from pathlib import Path

import pytest
from datasets import Dataset

from tests.evaluation.copies import picture, write_tsv
from vision_remember.data.images import decode_image
from vision_remember.data.schema import ImageFile
from vision_remember.data.tables import read_table

ROWS = [{"question": "Which?\nOne.", "answer": "['a', \"b\"]"}, {"question": "How?", "answer": "[c]"}]


def _pixels(reference) -> tuple:
    data = reference.read(max_bytes=10_000) if isinstance(reference, ImageFile) else reference
    return decode_image(data).size


def test_tsv_brings_its_pictures_in_base64_or_by_index(tmp_path: Path) -> None:
    rows = list(read_table(write_tsv(tmp_path / "copy", ROWS), split="test"))
    assert [row.text("question") for row in rows] == ["Which?\nOne.", "How?"]
    assert [row.texts("answer") for row in rows] == [("a", "b"), ("[c]",)]
    assert [_pixels(row.image()) for row in rows] == [(6, 6)] * 2


def test_parquet_keeps_pictures_as_bytes_and_takes_the_split_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("test", "validation"):
        table = {"question": [split, split], "image": [{"bytes": picture(), "path": "x.png"}] * 2}
        Dataset.from_dict(table).to_parquet(str(tmp_path / "data" / f"{split}-00000-of-00001.parquet"))
    rows = list(read_table(tmp_path, split="validation"))
    assert [(row.text("question"), row.number) for row in rows] == [("validation", 0), ("validation", 1)]
    assert rows[1].image() == picture()
    with pytest.raises(ValueError, match="the benchmark is the split dev: name the file"):
        list(read_table(tmp_path, split="dev"))
    (tmp_path / "data" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(ValueError, match="the benchmark is the split val: name the file"):
        list(read_table(tmp_path, split="val"))


@pytest.mark.parametrize(
    "content", [[{"id": "q1", "image": "a.png"}], {"data": [{"id": "q1", "image": "a.png"}]}, {"q1": {"image": "a"}}]
)
def test_json_is_a_list_an_object_with_data_or_an_object_of_records(tmp_path: Path, content) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture())
    (tmp_path / "rows.json").write_text(json.dumps(content), encoding="utf-8")
    [row] = read_table(tmp_path, split="test")
    assert row.identity("id") == "q1"
    assert _pixels(row.image()) == (6, 6)


def test_pictures_by_id_come_from_files_or_from_a_parquet_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"imageId": "n1"}\n{"imageId": "n2"}\n', encoding="utf-8")
    images = tmp_path / "images"
    images.mkdir()
    (images / "n1.jpg").write_bytes(picture())
    table = {"id": ["n2"], "image": [{"bytes": picture("blue"), "path": None}]}
    Dataset.from_dict(table).to_parquet(str(images / "part.parquet"))
    first, second = read_table(tmp_path, split="test")
    assert isinstance(first.image(), ImageFile)
    assert second.image() == picture("blue")
    assert (first.page, second.page) == ("n1", "n2")


def test_a_picture_outside_the_copy_is_never_read(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "rows.json").write_text('[{"image": "../secret.png"}]', encoding="utf-8")
    [row] = read_table(tmp_path / "copy", split="test")
    with pytest.raises(ValueError, match="leads out of the data folder"):
        row.image().read(max_bytes=10_000)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "gone.png"}, "no image 'gone.png'"),
        ({"question": "?"}, "has no image"),
    ],
)
def test_a_missing_picture_names_its_row(tmp_path: Path, row: dict, said: str) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([row]), encoding="utf-8")
    [read] = read_table(tmp_path, split="test")
    with pytest.raises(ValueError, match=f"rows.json#0.*{said}"):
        read.image()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.txt", "x", "holds no"),
        ("rows.json", "{", "rows.json"),
        ("rows.json", "[1]", "no record"),
        ("rows.json", '"x"', "no list of records"),
        ("rows.tsv", "index\timage\n0\t???\n", "not base64"),
        ("rows.tsv", "index\timage\n0\t\tx\n", "more cells than the header"),
        ("rows.parquet", "x", "cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        list(read_table(tmp_path, split="test"))


def test_a_cell_that_is_not_there_is_refused_with_the_columns_that_are(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"question": "?", "answer": "nan", "answers": []}]', encoding="utf-8")
    [row] = read_table(tmp_path, split="test")
    with pytest.raises(ValueError, match="has no answer; it has question, answer, answers"):
        row.text("answer")
    with pytest.raises(ValueError, match="answers is empty"):
        row.texts("answers")


def test_options_are_a_list_or_lettered_columns(tmp_path: Path) -> None:
    rows = [{"options": ["x", "y"]}, {"A": "x", "B": "y", "C": "nan", "D": None, "E": ""}]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    assert [row.options for row in read_table(tmp_path, split="test")] == [("x", "y")] * 2
