"""Samples that are set aside are listed, counted once, and limited in number."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from vision_remember.data.quarantine import Quarantine
from vision_remember.data.schema import DataError, Problem


def bad(where: str) -> DataError:
    return DataError.of([Problem(code="image.broken", where=where, why="broken\nimage", fix="replace")])


def test_each_lost_sample_is_written_with_its_reason(tmp_path):
    quarantine = Quarantine(tmp_path / "run" / "lost.jsonl", num_samples=5000)
    quarantine.add(bad("t.json#1"), "t.json#1")
    quarantine.add(DataError("something else"), "t.json#2")
    lines = [json.loads(line) for line in (tmp_path / "run" / "lost.jsonl").read_text().splitlines()]
    assert [line["where"] for line in lines] == ["t.json#1", "t.json#2"]
    assert lines[0]["code"] == "image.broken" and lines[1]["why"] == "something else"
    assert quarantine.summary() == "2 of 5000 samples set aside, listed in lost.jsonl"


def test_a_sample_is_counted_once_over_epochs_and_resumed_runs(tmp_path):
    for _ in range(3):
        quarantine = Quarantine(tmp_path / "lost.jsonl", num_samples=1000)
        quarantine.add(bad("a"), "a")
    assert quarantine.places() == {"a"}
    assert len((tmp_path / "lost.jsonl").read_text().splitlines()) == 1


def test_more_than_the_ceiling_stops_the_run_and_keeps_it_stopped(tmp_path):
    quarantine = Quarantine(tmp_path / "lost.jsonl", num_samples=3000, ceiling=0.001)
    for where in "abc":
        quarantine.add(bad(where), where)
    with pytest.raises(DataError, match="4 of 3000 samples are bad, more than the 3 allowed.*lost.jsonl"):
        quarantine.add(bad("d"), "d")
    with pytest.raises(DataError, match="4 of 3000"):
        Quarantine(tmp_path / "lost.jsonl", num_samples=3000, ceiling=0.001)
    assert Quarantine(tmp_path / "lost.jsonl", num_samples=3000, ceiling=0.01).places() == set("abcd")


def test_workers_that_share_a_file_lose_no_line(tmp_path):
    def work(worker):
        mine = Quarantine(tmp_path / "lost.jsonl", num_samples=100, ceiling=1)
        for number in range(10):
            mine.add(bad(f"{worker}-{number}"), f"{worker}-{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(Quarantine(tmp_path / "lost.jsonl", num_samples=100, ceiling=1).places()) == 40
