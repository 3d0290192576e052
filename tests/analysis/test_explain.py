"""The heat map says where the attention was: even attention is 1 everywhere, one patch is where it is, at any pair of grids."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from vision_remember.analysis.explain import draw_looks, looked, save_png
from vision_remember.geometry import Grid, windows

GRIDS = [(Grid(12, 12), Grid(4, 4), 0), (Grid(7, 5), Grid(3, 2), 0), (Grid(6, 6), Grid(3, 3), 1)]


@pytest.mark.parametrize(("fine", "coarse", "margin"), GRIDS)
def test_even_attention_is_one_everywhere(fine: Grid, coarse: Grid, margin: int) -> None:
    seen = windows(fine, coarse, margin)
    even = (seen.valid / seen.valid.sum(dim=1, keepdim=True))[:, None, :].expand(-1, 2, -1)
    torch.testing.assert_close(looked(even, seen, fine), torch.ones(fine.height, fine.width))


def test_a_token_that_looks_at_one_patch_lights_that_patch() -> None:
    fine, coarse = Grid(4, 4), Grid(2, 2)
    seen = windows(fine, coarse)
    attention = torch.zeros(4, 1, 4)
    attention[:, :, 0] = 1  # the top left patch of every window
    expected = torch.zeros(4, 4)
    expected[::2, ::2] = 4
    torch.testing.assert_close(looked(attention, seen, fine), expected)


def test_attention_of_another_number_of_tokens_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"\(9, 4\).*\(4, 4\)"):
        looked(torch.zeros(9, 1, 4), windows(Grid(4, 4), Grid(2, 2)), Grid(4, 4))


def test_the_picture_has_a_panel_per_insertion_and_is_written_whole(tmp_path: Path) -> None:
    page = Image.new("RGB", (40, 20), "white")
    attention = {-1: torch.full((4, 2, 4), 0.25), 3: torch.full((4, 2, 4), 0.25)}
    figure = draw_looks(page, attention, Grid(4, 4), Grid(2, 2), title="Total in $? 12 $")
    assert [panel.get_title() for panel in figure.axes[:3]] == ["4 vision tokens", "before layer 0", "after layer 3"]
    save_png(figure, tmp_path / "look.png")
    assert [path.name for path in tmp_path.iterdir()] == ["look.png"]
    with Image.open(tmp_path / "look.png") as picture:
        assert picture.width > 2 * picture.height
