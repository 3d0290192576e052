"""One command: models in; figures, numbers and a report out, the same twice, for rendered pages and for a user's images."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import vision_remember_cli as front
from vision_remember.analysis.analyse import analyse, labels, text_lines
from vision_remember.model import Engine

NONE, REMEMBER = {"type": "none"}, {"type": "remember", "layers": [-1, 2], "margin": 1}
FETCHED = re.compile(r"(?:src|href)\s*=\s*[\"'](?!data:|#)|url\((?!#|&quot;#|\")|@import")


@pytest.fixture(scope="module")
def models(engine_of) -> Iterator[list[str]]:
    """Names of two models, loaded without a disk."""
    known = {"runs/plain/model": NONE, "runs/remember/model": REMEMBER}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "load", lambda name: engine_of(known[name]))
        yield list(known)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("analysis") / "out"


@pytest.fixture(scope="module")
def result(models: list[str], out: Path) -> dict:
    return analyse(models, out, count=16)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_every_figure_comes_as_png_svg_and_csv(result: dict, out: Path) -> None:
    assert sorted(map(str, out.iterdir())) == sorted(result["files"])
    stems = {Path(file).stem for file in result["files"]} - {"report"}
    assert stems == {"characters", "attention", "similarity", *(f"looks_remember_{i}" for i in range(1, 5))}
    for stem in stems:
        with Image.open(out / f"{stem}.png") as picture:
            assert picture.width > 1000
        assert (out / f"{stem}.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")
        assert rows_of(out / f"{stem}.csv")


def test_numbers_in_files_and_json_agree(result: dict, out: Path) -> None:
    rows = rows_of(out / "characters.csv")
    assert {row["model"] for row in rows} == {"plain", "remember"}
    read = [row for row in rows if (row["model"], row["quantity"], row["reading"]) == ("remember", "read", "as it is")]
    assert [float(row["value"]) for row in read] == pytest.approx(
        result["models"]["remember"]["characters"]["read"]["as it is"], abs=1e-6
    )
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in read)
    assert result["models"]["plain"]["characters"].keys() == {"encoder", "chance", "read"}
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    looks = rows_of(out / "looks_remember_1.csv")
    assert len(looks) == 2 * 36 and {row["layer"] for row in looks} == {"-1", "2"}


def test_the_report_stands_alone_and_says_what_was_done(result: dict, out: Path) -> None:
    report = (out / "report.html").read_text(encoding="utf-8")
    assert FETCHED.search(report) is None
    assert result["command"] in report and "plain has no re-fusion" in report
    for sentence in text_lines(result)[:-1]:
        read = re.search(r"([\d.]+) % off the tokens", sentence)
        assert read is not None and f"{read[1]} %" in report


def test_the_same_command_gives_the_same_files(models: list[str], result: dict, out: Path, tmp_path: Path) -> None:
    again = analyse(models, tmp_path / "again", count=16)
    assert again["models"] == result["models"]
    for file in out.iterdir():
        if file.name != "report.html":  # it quotes the command, which names the folder
            assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_a_users_images_are_looked_into_without_probes(models: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.new("RGB", (90, 40), "white").save(folder / "wide.png")
    Image.effect_noise((30, 70), 60).convert("RGB").save(folder / "tall.png")
    found = analyse(models[1:], tmp_path / "out", images=folder, question="Who <b>is</b> it, for $5 or $6?")
    assert "characters" not in found["models"]["remember"]
    assert not (tmp_path / "out" / "characters.csv").exists()
    assert rows_of(tmp_path / "out" / "looks_remember_2.csv")
    assert "Who &lt;b&gt;is" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"count": 3}, "3 pages"),
        ({"question": "What?"}, "questions of its own"),
        ({"images": Path("absent"), "count": 20}, "count=20"),
        ({"images": Path("absent")}, "absent"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict, named: str, models: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=named):
        analyse(models, tmp_path / "out", **options)


def test_labels_are_the_shortest_that_tell_models_apart() -> None:
    assert labels(["embedded/llava_vr_tiny"]) == ["llava_vr_tiny"]
    assert labels(["runs/a/none/model", "runs/a/remember/model"]) == ["none", "remember"]
    assert labels(["rows/none/seed-0/model", "rows/remember/seed-0/model"]) == ["none", "remember"]
    assert labels(["runs/a/none", "runs/b/none", "runs/b/sva"]) == ["a/none", "b/none", "b/sva"]
    assert labels(["runs/none/model"]) == ["none"]
    assert labels(["embedded/align_mlp", "runs/none/model"]) == ["align_mlp", "none"]
    with pytest.raises(ValueError, match="told apart"):
        labels(["runs/a", "runs/a"])


def test_the_verb_prints_one_object_or_one_clear_line(models: list[str], tmp_path: Path) -> None:
    line = ["analyse", "embedded/llava_vr_tiny", "--out", str(tmp_path / "out"), "--json"]
    asked = CliRunner().invoke(front.app, [*line, "--question", "What?"])
    assert asked.exit_code == 1 and "questions of its own" in json.loads(asked.stdout)["error"]
    absent = CliRunner().invoke(front.app, ["analyse", "./absent", "--out", str(tmp_path / "out")])
    assert (absent.exit_code, absent.stdout) == (1, "") and "./absent" in absent.stderr
