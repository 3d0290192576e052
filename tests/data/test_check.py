"""One pass over a folder lists everything that is wrong with it, with place, reason and cure."""

import hashlib
import json

import pytest
from PIL import Image

from tests.data.pictures import checkers, encode
from vision_remember.data.check import CHECKSUMS, check_folder, find_leaks, inspect_folder
from vision_remember.data.sources import load_samples


def record(name, image="good.png", question="<image>\nQ?", answer="A"):
    talk = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": image, "conversations": talk}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "good.png").write_bytes(encode(checkers()))
    return tmp_path


def write(folder, records, name="data.json"):
    text = json.dumps(records) if name.endswith(".json") else "\n".join(json.dumps(one) for one in records)
    (folder / name).write_text(text)
    return folder


def codes(problems):
    return [problem.code for problem in problems]


def test_a_sound_folder_has_no_problem(folder):
    report = inspect_folder(write(folder, [record("a"), record("b", image=None, question="Q?")]))
    assert (report.num_samples, report.problems, report.warnings, report.notes) == (2, (), (), {})


def test_every_bad_sample_is_listed_in_one_pass(folder):
    jpeg = encode(checkers(64, 64), "JPEG")
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "page.png").write_bytes(b"<html>not found</html>")
    (folder / "empty.png").write_bytes(b"")
    records = [
        record("sound"),
        record("cut", "cut.jpg"),
        record("html", "page.png"),
        record("empty", "empty.png"),
        record("case", "GOOD.png"),
        record("outside", "../x.png"),
        record("no mark", question="Q?"),
        record("no image", image=None),
        record("no answer", answer=""),
        record("two wrongs", question="Q?", answer=" "),
        "not an object",
        record("sound too"),
    ]
    problems = check_folder(write(folder, records))
    assert codes(problems) == [
        "image.broken",
        "image.format",
        "image.empty",
        "image.missing",
        "image.path",
        "images.count",
        "images.count",
        "turns.empty_answer",
        "turns.empty_answer",
        "images.count",
        "record.type",
    ]
    assert [problem.where.split(" ")[0] for problem in problems[:3]] == ["data.json#1", "data.json#2", "data.json#3"]
    assert "'good.png' exists" in problems[3].why
    assert all(problem.fix for problem in problems)


def test_a_broken_line_hides_no_other(folder):
    write(folder, [record("a"), record("b", answer=""), record("c")], "data.jsonl")
    text = (folder / "data.jsonl").read_text().splitlines()
    (folder / "data.jsonl").write_text("\n".join([text[0], '{"id": ', text[1], text[2][:30]]))
    report = inspect_folder(folder)
    assert codes(report.problems) == ["json.syntax", "turns.empty_answer", "json.syntax"]
    assert "line 2, byte" in report.problems[0].why and report.num_samples == 4


def test_a_folder_that_cannot_be_opened_is_a_problem_and_not_a_crash(tmp_path):
    assert codes(check_folder(tmp_path)) == ["data.missing"]
    assert codes(check_folder(tmp_path / "none")) == ["data.missing"]
    assert codes(check_folder(write(tmp_path, []))) == ["data.empty"]


def test_ids_that_repeat_are_a_warning_with_counts(folder):
    report = inspect_folder(write(folder, [record("a"), record("a"), record("b"), record("a")]))
    assert not report.problems
    assert (
        codes(report.warnings) == ["ids.repeated"] and "1 ids stand more than once: 'a' (3)" in report.warnings[0].why
    )


def test_first_frames_and_broken_exif_are_counted(folder):
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200)]
    (folder / "moving.gif").write_bytes(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    (folder / "turned.jpg").write_bytes(encode(checkers(), "JPEG", exif=b"Exif\0\0garbage"))
    report = inspect_folder(
        write(folder, [record("a", "moving.gif"), record("b", "turned.jpg"), record("c", "turned.jpg")])
    )
    assert report.notes == {"animation: first frame only": 1, "broken EXIF ignored": 1}, "one file counts once"


def test_checksums_find_the_flipped_byte_that_decoding_cannot(folder):
    jpeg = bytearray(encode(checkers(64, 64), "JPEG"))
    (folder / "a.jpg").write_bytes(jpeg)
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in ("a.jpg", "good.png")]
    (folder / CHECKSUMS).write_text("\n".join([*lines, "rubbish", f"{'0' * 64}  gone.png"]) + "\n")
    write(folder, [record("a", "a.jpg")])
    assert codes(check_folder(folder)) == ["checksum.line", "image.missing"]
    jpeg[-20] ^= 1
    (folder / "a.jpg").write_bytes(jpeg)
    assert codes(check_folder(folder)) == ["checksum.mismatch", "checksum.line", "image.missing"]


def test_an_image_in_both_of_two_sets_is_found_whatever_it_is_called(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "renamed.webp").write_bytes(encode(checkers(), "WEBP", lossless=True))
    (other / "new.png").write_bytes(encode(Image.new("RGB", (4, 4))))
    train = load_samples(write(folder, [record("a")]))
    test = load_samples(write(other, [record("x", "renamed.webp"), record("y", "new.png")]))
    [leak] = find_leaks(train, test)
    assert leak.code == "images.leak" and "(id 'x')" in leak.where and "data.json#0 (id 'a')" in leak.why
