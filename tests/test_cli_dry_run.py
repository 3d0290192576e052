import json

import pytest
from typer.testing import CliRunner

import vision_remember_cli as front
from vision_remember.cli_dry_run import read_size


@pytest.mark.parametrize(("text", "size"), [("80GiB", 80 * 2**30), ("1.5G", 3 * 2**29), ("512 MB", 2**29), ("7", 7)])
def test_sizes_are_read_in_powers_of_two(text, size):
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "many", "80 apples", "-3GiB", "0GiB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="write a size such as 80GiB"):
        read_size(text)


def test_a_dry_run_prints_every_figure_and_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["train", "tiny/elastic.yaml", "--dry-run", "--gpus", "2"]
    found = json.loads(CliRunner().invoke(front.app, [*command, "--json"]).stdout)
    assert found["tokens_per_image"] == [36, 16, 9] and (found["micro_batch"], found["accumulation"]) == (16, 3)
    text = CliRunner().invoke(front.app, command).stdout
    for figure in ("32 samples, each at 3 rates (16 samples x 3 on each of 2 GPUs)", "36 vision tokens of 144 patches"):
        assert figure in text
    assert f"{sum(part['total'] for part in found['parameters'].values()):,}" in text
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_one_line_and_status_1():
    done = CliRunner().invoke(front.app, ["train", "tiny/elastic.yaml", "--dry-run", "--gpu-memory", "1GiB"])
    assert done.exit_code == 1 and done.stdout == ""
    assert done.stderr.startswith("error: tiny-elastic needs") and "1.0 GiB are there" in done.stderr
