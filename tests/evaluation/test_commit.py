import subprocess
from pathlib import Path

import pytest

from vision_remember.evaluation import commit


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in the place of this package's."""
    monkeypatch.setattr(commit, "ROOT", tmp_path)
    commit.source_commit.cache_clear()
    (tmp_path / "file").write_text("one")
    for line in ("init -q", "add file", "-c user.name=a -c user.email=a@b commit -q -m one"):
        subprocess.run(["git", "-C", str(tmp_path), *line.split()], check=True)
    yield tmp_path
    commit.source_commit.cache_clear()


def test_a_commit_is_named_and_changes_are_admitted(checkout: Path) -> None:
    clean = commit.source_commit()
    assert clean is not None and len(clean) == 40
    (checkout / "file").write_text("two")
    commit.source_commit.cache_clear()
    assert commit.source_commit() == f"{clean}+changes"


def test_outside_a_checkout_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "ROOT", tmp_path)
    commit.source_commit.cache_clear()
    assert commit.source_commit() is None
    commit.source_commit.cache_clear()
