"""docs/native.md tells the truth: its marked blocks run one after the other, and the tests and files it names exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vision_remember.data.synthetic import make_page

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "native.md").read_text(encoding="utf-8")


def test_the_marked_blocks_run(tmp_path: Path) -> None:
    blocks = re.findall(r"<!-- run -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    make_page("form", "test", 0, 0).image.save(tmp_path / "page.png")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "\n".join(blocks)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "the model answered nothing"


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_every_block_is_python(block: str) -> None:
    compile(block, "docs/native.md", "exec")


@pytest.mark.parametrize(
    "name", sorted({*re.findall(r"`(tests/\S+\.py)`", PAGE), *re.findall(r"\]\(\.\./(\S+?)\)", PAGE)})
)
def test_what_it_names_exists(name: str) -> None:
    assert (ROOT / name).exists()
