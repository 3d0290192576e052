import json
import os
import shutil

import pytest

from vision_remember.training import checkpoint

NUM_CALLS = 10  # fsync, rename and replace calls of one save; a test below counts them


class Killed(BaseException):
    """Stands for a kill: no handler of ours may catch it, so nothing is cleaned up."""


def write(folder):
    (folder / "a.json").write_text(json.dumps({"a": 1}))
    (folder / "b.bin").write_bytes(bytes(1000))


def newest(folder):
    return next(checkpoint.candidates(folder), None)


def kill_at(monkeypatch, call: int) -> None:
    """Dies at the `call`-th write to disk that the protocol orders."""
    seen = iter(range(call + 1))

    def counted(real):
        def order(*args, **kwargs):
            if next(seen, call) == call:
                raise Killed
            return real(*args, **kwargs)

        return order

    for name in ("fsync", "rename", "replace"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))


@pytest.mark.parametrize("call", range(NUM_CALLS))
def test_a_kill_at_any_point_leaves_the_newest_complete_checkpoint(tmp_path, monkeypatch, call):
    checkpoint.save(tmp_path, 1, write, facts={})
    with monkeypatch.context() as patch:
        kill_at(patch, call)
        try:
            checkpoint.save(tmp_path, 2, write, facts={})
        except Killed:
            pass
    found = newest(tmp_path)
    assert found is not None and checkpoint.verify(found)["step"] in (1, 2)
    checkpoint.clean(tmp_path)
    assert not list(tmp_path.glob("*.tmp-*"))
    checkpoint.save(tmp_path, 2, write, facts={})
    assert newest(tmp_path).name == "step-2"


def test_the_kills_above_cover_the_whole_protocol(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, write, facts={})
    with monkeypatch.context() as patch:
        kill_at(patch, NUM_CALLS)
        checkpoint.save(tmp_path, 2, write, facts={})


def test_only_the_newest_two_are_kept_and_steps_are_ordered_by_number(tmp_path):
    for step in (8, 9, 10, 11):
        checkpoint.save(tmp_path, step, write, facts={})
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-10", "step-11"]
    assert json.loads((tmp_path / "latest.json").read_text())["checkpoint"] == "step-11"


@pytest.mark.parametrize("damage", ["truncated", "longer", "missing", "no manifest"])
def test_an_incomplete_checkpoint_is_passed_over_loudly(tmp_path, caplog, damage):
    checkpoint.save(tmp_path, 1, write, facts={})
    newer = checkpoint.save(tmp_path, 2, write, facts={})
    file = newer / "b.bin"
    if damage == "truncated":
        file.write_bytes(bytes(10))
    elif damage == "longer":
        file.write_bytes(bytes(1001))
    elif damage == "missing":
        file.unlink()
    else:
        (newer / checkpoint.MANIFEST).unlink()
    assert newest(tmp_path).name == "step-1"
    assert "step-2 is incomplete" in caplog.text


def test_a_flipped_byte_is_named(tmp_path):
    path = checkpoint.save(tmp_path, 1, write, facts={})
    (path / "b.bin").write_bytes(bytes(999) + b"\1")
    with pytest.raises(ValueError, match=r"b\.bin.*sha256"):
        checkpoint.verify(path)


def test_a_full_disk_leaves_the_older_checkpoint_and_says_how_much_is_needed(tmp_path):
    checkpoint.save(tmp_path, 1, write, facts={})

    def full(folder):
        write(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match=r"No space left.*needs about [\d,]+ bytes, [\d,]+ are free"):
        checkpoint.save(tmp_path, 2, full, facts={})
    assert newest(tmp_path).name == "step-1"
    assert not list(tmp_path.glob("*.tmp-*"))


def test_an_incomplete_folder_of_the_same_step_is_replaced_and_a_complete_one_kept(tmp_path):
    path = checkpoint.save(tmp_path, 1, write, facts={})
    (path / "b.bin").unlink()
    checkpoint.save(tmp_path, 1, write, facts={"round": 2})
    checkpoint.save(tmp_path, 1, write, facts={"round": 3})
    assert checkpoint.verify(path)["round"] == 2


def test_a_replaced_folder_is_never_half_written(tmp_path):
    target = tmp_path / "model"
    checkpoint.replace_folder(target, write)

    def broken(folder):
        (folder / "a.json").write_text("half")
        raise Killed

    with pytest.raises(Killed):
        checkpoint.replace_folder(target, broken)
    assert json.loads((target / "a.json").read_text()) == {"a": 1}
    checkpoint.replace_folder(target, lambda folder: (folder / "c").write_text("new"))
    assert [path.name for path in target.iterdir()] == ["c"]
    shutil.rmtree(target)
