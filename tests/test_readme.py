"""The README tells the truth: its marked Python blocks run, in order, and its commands and links exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.hosts import build_host
from vision_remember.data.synthetic import make_page

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"<!-- run(?:: (?P<file>\S+))? -->\n```python\n(?P<code>.*?)```", re.DOTALL)


def test_the_python_blocks_run(tmp_path: Path) -> None:
    """A block with a file name becomes that file; the others are one script, run beside a page."""
    script = []
    for block in BLOCK.finditer(README):
        if block["file"]:
            path = tmp_path / block["file"]
            path.parent.mkdir(parents=True)
            path.write_text(block["code"], encoding="utf-8")
        else:
            script.append(block["code"])
    assert len(script) == README.count("<!-- run -->") > 0
    build_host("llava").save_pretrained(tmp_path / "llava-1.5-7b-hf")  # a tiny one in its place
    make_page("form", "test", 0, 0).image.save(tmp_path / "page.png")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "the model answered nothing"
    assert (tmp_path / "remember.safetensors").is_file()


def test_every_python_block_is_run() -> None:
    assert README.count("```python") == len(BLOCK.findall(README))


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists(), f"README links to {link}"


@pytest.mark.parametrize("recipe", sorted(set(re.findall(r"\btiny/\w+\.yaml", README))))
def test_named_recipes_ship(recipe: str) -> None:
    assert (ROOT / "recipes" / recipe).is_file()
