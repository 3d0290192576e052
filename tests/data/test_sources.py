"""Files of every layout give the same samples, one at a time; a bad record costs itself and nothing else."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from tests.data.pictures import checkers, encode
from vision_remember.data.schema import DataError, Sample
from vision_remember.data.sources import load_samples

PICTURE = encode(checkers())


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def record(number: int, **rest) -> dict:
    talk = [{"from": "human", "value": f"<image>\nQ{number}?"}, {"from": "gpt", "value": f"A{number}"}]
    return {"id": f"s{number}", "image": f"{number}.png", "conversations": talk} | rest


def write(folder: Path, name: str, data) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def write_lines(folder: Path, name: str, records: list) -> Path:
    return write(folder, name, b"".join(json.dumps(one).encode() + b"\n" for one in records))


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def refusal(path, **options) -> DataError:
    with pytest.raises(DataError) as caught:
        samples = load_samples(path, **options)
        for index in range(len(samples)):
            samples[index]
    return caught.value


def texts(sample: Sample) -> list[str]:
    return [turn.text for turn in sample.turns]


def test_every_layout_gives_the_same_samples(tmp_path):
    records = [record(number) for number in range(3)]
    for number in range(3):
        write(tmp_path, f"{number}.png", PICTURE)
    rows = [one | {"image": {"bytes": PICTURE, "path": None}} for one in records]
    members = {}
    for number, one in enumerate(records):
        members |= {f"{number}.png": PICTURE, f"{number}.json": json.dumps(one).encode()}
    files = [
        write(tmp_path, "data.json", records),
        write_lines(tmp_path, "data.jsonl", records),
        write_parquet(tmp_path / "data.parquet", rows),
        write_tar(tmp_path / "data.tar", members),
    ]
    for file in files:
        samples = load_samples(file)
        assert len(samples) == 3
        assert [sample.id for sample in samples] == ["s0", "s1", "s2"]
        assert [texts(sample) for sample in samples] == [[f"\nQ{n}?", f"A{n}"] for n in range(3)]
        assert all(sample.load_images()[0].tobytes() == checkers().tobytes() for sample in samples)
        assert texts(samples[-1]) == ["\nQ2?", "A2"] and [one.id for one in samples[1:]] == ["s1", "s2"]
        with pytest.raises(IndexError):
            samples[3]


def test_chat_messages_with_structured_parts_are_read_from_lines_and_parquet(tmp_path):
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "Q <image>?"}]
    answer = [{"type": "text", "text": "A"}]
    row = {
        "id": "s",
        "images": [{"bytes": PICTURE, "path": "x.png"}],
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}],
    }
    [sample] = load_samples(write_parquet(tmp_path / "data.parquet", [row]))
    assert texts(sample) == ["Q <image>?", "A"] and sample.load_images()[0].size == (16, 12)
    write(tmp_path, "x.png", PICTURE)
    [sample] = load_samples(write_lines(tmp_path, "data.jsonl", [row | {"images": ["x.png"]}]))
    assert texts(sample) == ["Q <image>?", "A"] and sample.load_images()[0].size == (16, 12)


def test_a_folder_stands_for_its_data_file_or_its_shards(tmp_path):
    write(tmp_path / "a", "data.json", [record(0)])
    write(tmp_path / "a", "metadata.json", [record(1), record(2)])
    assert [sample.id for sample in load_samples(tmp_path / "a")] == ["s0"]
    for shard in range(2):
        members = {f"{shard}.png": PICTURE, f"{shard}.json": json.dumps(record(shard)).encode()}
        write_tar(tmp_path / "b" / f"{shard}.tar", members)
        row = record(shard) | {"image": {"bytes": PICTURE, "path": None}}
        write_parquet(tmp_path / "c" / f"{shard}.parquet", [row])
    assert [sample.id for sample in load_samples(tmp_path / "b")] == ["s0", "s1"]
    assert [sample.id for sample in load_samples(tmp_path / "c")] == ["s0", "s1"]
    write_lines(tmp_path / "b", "more.jsonl", [record(0)])
    assert "several data files" in str(refusal(tmp_path / "b"))


def test_images_may_live_in_another_folder(tmp_path):
    write(tmp_path / "pictures", "0.png", PICTURE)
    path = write(tmp_path / "records", "data.json", [record(0)])
    assert load_samples(path, images=tmp_path / "pictures")[0].load_images()[0].size == (16, 12)
    with pytest.raises(DataError, match=r"data.json#0 \(id 's0'\): image 1 of 1 '0.png': no such file"):
        load_samples(path)[0].load_images()


def test_opening_parses_no_record_and_a_bad_one_harms_no_other(tmp_path):
    records = [record(0), {"conversations": 3}, record(2)]
    for path in (write(tmp_path, "data.json", records), write_lines(tmp_path, "data.jsonl", records)):
        samples = load_samples(path)
        assert samples[0].id == "s0" and samples[2].id == "s2"
        with pytest.raises(DataError, match=rf"{path.name}#1 \(id '1'\)"):
            samples[1]


def test_loader_workers_read_the_file_anew(tmp_path):
    for number in range(2):
        members = {f"{number}.png": PICTURE, f"{number}.json": json.dumps(record(number)).encode()}
        write_tar(tmp_path / "tars" / f"{number}.tar", members)
    for path in (write(tmp_path, "data.json", [record(0), record(1)]), tmp_path / "tars"):
        samples = load_samples(path)
        assert samples[1].id == "s1"
        copy = pickle.loads(pickle.dumps(samples))
        assert copy[1].turns == samples[1].turns and copy.fingerprint == samples.fingerprint


# D1, D2: the text of the file


def test_a_byte_order_mark_and_windows_lines_are_accepted(tmp_path):
    text = json.dumps([record(0)], indent=1).replace("\n", "\r\n").encode()
    assert load_samples(write(tmp_path, "a.json", b"\xef\xbb\xbf" + text))[0].id == "s0"
    line = json.dumps(record(0)).encode() + b"\r\n"
    assert len(load_samples(write(tmp_path, "a.jsonl", b"\xef\xbb\xbf" + line + b"\r\n" + line))) == 2


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_refused_with_advice(tmp_path, name, encoding):
    [problem] = refusal(write(tmp_path, name, json.dumps([record(0)]).encode(encoding))).problems
    assert problem.code == "json.encoding" and "UTF-8" in problem.fix and name in problem.where


def test_a_half_written_last_line_is_named_by_line_and_byte(tmp_path):
    whole = json.dumps(record(0)).encode() + b"\n"
    path = write(tmp_path, "data.jsonl", whole + whole[:40])
    samples = load_samples(path)
    assert samples[0].id == "s0"
    [problem] = refusal(path).problems
    assert problem.where.startswith("data.jsonl#1") and "line 2, byte" in problem.why


def test_broken_json_is_named_by_line_and_byte(tmp_path):
    [problem] = refusal(write(tmp_path, "data.json", b'[\n{"id": "a",}\n]')).problems
    assert problem.where.startswith("data.json#0") and "line 2, byte 13" in problem.why
    [problem] = refusal(write(tmp_path, "data.json", b'[\n{"id": "a"}')).problems
    assert problem.where == "data.json" and "line 2, byte 13" in problem.why and "cut off" in problem.fix


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b'{"id": "a", "id": "b"}', "json.duplicate_key"),
        (b'{"id": NaN}', "json.number"),
        (b'{"id": ' + b"1" * 5000 + b"}", "json.number"),
        (b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "json.depth"),
    ],
)
def test_json_that_is_hostile_or_means_two_things_is_refused(tmp_path, text, code):
    assert refusal(write(tmp_path, "data.json", b"[" + text + b"]")).problems[0].code == code
    assert refusal(write(tmp_path, "data.jsonl", text)).problems[0].code == code
    with pytest.raises(DataError):
        load_samples(write_tar(tmp_path / "data.tar", {"a.json": text}))[0]


# D3, D4, D5: files that are named


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("absent.png", "image.missing"),
        ("0.PNG", "image.missing"),
        ("folder", "image.not_a_file"),
        ("../outside.png", "image.path"),
        ("/etc/passwd", "image.path"),
        ("https://host/0.png", "image.path"),
        ("nul\0.png", "image.path"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_with_its_sample(tmp_path, name, code):
    write(tmp_path, "0.png", PICTURE)
    (tmp_path / "folder").mkdir()
    sample = load_samples(write(tmp_path, "data.json", [record(0, image=name)]))[0]
    with pytest.raises(DataError, match=r"data.json#0 \(id 's0'\): image 1 of 1") as caught:
        sample.load_images()
    assert caught.value.problems[0].code == code
    assert str(tmp_path) not in str(caught.value)


# D13: empty and missing


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("data.json", b"[]", "data.empty"),
        ("data.jsonl", b"\n\n", "data.empty"),
        ("data.json", b"", "json.syntax"),
        ("data.jsonl", b"", "data.empty"),
        ("data.csv", b"a,b", "data.layout"),
        ("data.parquet", b"not parquet", "data.parquet"),
        ("data.tar", b"not a tar" * 100, "data.archive"),
    ],
)
def test_a_file_without_samples_is_refused_by_name(tmp_path, name, data, code):
    [problem] = refusal(write(tmp_path, name, data)).problems
    assert problem.code == code and problem.where == name


def test_a_path_without_data_is_refused_by_name(tmp_path):
    assert refusal(tmp_path).problems[0].code == "data.missing"
    assert refusal(tmp_path / "none.json").problems[0].code == "data.missing"


# D15: files that change


def test_a_file_that_changed_or_went_after_it_was_opened_is_named(tmp_path):
    for write_file in (
        lambda number: write(tmp_path, "data.json", [record(0), record(number)]),
        lambda number: write_lines(tmp_path, "data.jsonl", [record(0), record(number)]),
        lambda number: write_tar(
            tmp_path / "data.tar", {"0.json": json.dumps(record(0, image=None)).encode() * number}
        ),
        lambda number: write_parquet(tmp_path / "data.parquet", [record(0, note="x" * number)]),
    ):
        path = write_file(1)
        samples = load_samples(path)
        fingerprint = samples.fingerprint
        write_file(2000)
        with pytest.raises(DataError, match="changed after it was indexed"):
            samples[0]
        with pytest.raises(DataError, match="changed after it was indexed"):
            samples.fingerprint  # noqa: B018
        assert load_samples(path).fingerprint != fingerprint
        samples = load_samples(path)
        path.unlink()
        with pytest.raises(DataError, match="is gone"):
            samples[0]


# tars


def test_a_tar_may_mix_samples_with_no_one_and_several_images(tmp_path):
    def talk(marks):
        return {"conversations": [{"from": "human", "value": "<image>" * marks + "Q?"}, {"from": "gpt", "value": "A"}]}

    red = encode(checkers().crop((0, 0, 4, 4)))
    members = {
        "x/0.json": json.dumps(talk(0)).encode(),
        "x/1.png": PICTURE,
        "x/1.json": json.dumps(talk(1)).encode(),
        "x/2.1.png": PICTURE,
        "x/2.0.png": red,
        "x/2.json": json.dumps(talk(2)).encode(),
        "x/2.txt": b"ignored",
    }
    samples = load_samples(write_tar(tmp_path / "data.tar", members))
    assert [sample.id for sample in samples] == ["x/0", "x/1", "x/2"]
    assert [[image.size for image in sample.load_images()] for sample in samples] == [
        [],
        [(16, 12)],
        [(4, 4), (16, 12)],
    ]


def test_tar_members_that_are_links_or_lack_a_record_are_refused(tmp_path):
    assert "no member ends in .json" in str(refusal(write_tar(tmp_path / "a.tar", {"0.png": PICTURE})))
    members = {"0.png": PICTURE, "1.json": json.dumps(record(1, image=None)).encode()}
    error = refusal(write_tar(tmp_path / "b.tar", members))
    assert error.problems[0].code == "data.record" and "add 0.json" in error.problems[0].fix
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert "link or a device" in str(refusal(tmp_path / "c.tar"))


def test_a_tar_that_is_cut_off_is_refused(tmp_path):
    path = write_tar(
        tmp_path / "data.tar", {f"{number}.json": json.dumps(record(number)).encode() for number in range(9)}
    )
    path.write_bytes(path.read_bytes()[:1800])
    assert refusal(path).problems[0].code in ("data.archive", "json.syntax")
