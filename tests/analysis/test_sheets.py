"""Rendered sheets carry what stands on them; a user's images are found by name and refused when there are none."""

from pathlib import Path

import pytest
from PIL import Image

from vision_remember.analysis.sheets import image_sheets, rendered_sheets


def test_rendered_sheets_take_turns_and_know_their_cells() -> None:
    sheets = rendered_sheets(5)
    assert [sheet.name.split("-")[0] for sheet in sheets] == ["text", "table", "chart", "form", "text"]
    assert all(sheet.cells is not None and sheet.cells.shape == (12, 12) and sheet.answer for sheet in sheets)
    assert [sheet.name for sheet in rendered_sheets(2)] == [sheet.name for sheet in sheets[:2]]
    assert rendered_sheets(1, seed=1)[0].name != sheets[0].name


def test_images_of_a_folder_are_found_in_order(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    for name in ("b.png", "a.JPG", "deeper/c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    sheets = image_sheets(tmp_path, "What?")
    assert [sheet.name for sheet in sheets] == ["a.JPG", "b.png", "deeper/c.png"]
    assert sheets[0].image.size == (8, 8) and sheets[0].cells is None


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no image"):
        image_sheets(tmp_path, "What?")
    with pytest.raises(ValueError, match="no folder"):
        image_sheets(tmp_path / "absent", "What?")
