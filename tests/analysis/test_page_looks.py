"""The frame of the evidence lies where the page lies on the canvas, and the numbers are those of the picture."""

import pytest
import torch
from PIL import Image

from tests.analysis.made_up import measured
from vision_remember.analysis.measurement import Measurement
from vision_remember.analysis.page_looks import MOST_LAYERS, page_looks
from vision_remember.analysis.sheets import Sheet
from vision_remember.geometry import Grid


def looked(num_layers: int) -> Measurement:
    """Even looks of 4 tokens over 6 x 6 patches."""
    looks = {layer: torch.full((1, 4, 9), 1 / 9) for layer in range(num_layers)}
    return measured(tokens=Grid(2, 2), patch_grid=Grid(6, 6), looks=looks)


def test_the_frame_follows_the_page_onto_the_canvas() -> None:
    page = Image.new("RGB", (100, 50), "white")
    sheet = Sheet(name="wide", source=page, question="What?", evidence=(50, 0, 100, 50))
    canvas = Image.new("RGB", (48, 48))  # the page lies on it at (0, 12), 48 x 24, and a patch is 8 x 8
    [frame] = page_looks(looked(2), sheet, 0, canvas, "looks").figure.axes[0].patches
    assert (*frame.get_xy(), frame.get_width(), frame.get_height()) == pytest.approx((3, 1.5, 3, 3))


def test_many_insertions_are_drawn_in_part_and_written_in_full() -> None:
    sheet = Sheet(name="page", source=Image.new("RGB", (48, 48)), question="What?")
    drawn = page_looks(looked(10), sheet, 0, sheet.image, "looks")
    titles = [panel.get_title() for panel in drawn.figure.axes[: 1 + MOST_LAYERS]]
    assert titles == ["4 vision tokens", "after layer 0", "after layer 3", "after layer 6", "after layer 9"]
    assert len(drawn.rows) == 10 * 36
    assert {row["attention_over_even"] for row in drawn.rows} == {"1.0000"}
