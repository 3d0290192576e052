"""Pixels of every mode: bit for bit those of transformers' own processors where a converted checkpoint needs them."""

import random

import pytest
import torch
from transformers import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from tests.llava import PINPOINTS
from tests.model.conftest import page
from vision_remember.geometry import Grid
from vision_remember.model.canvases import Canvases, stack_views
from vision_remember.model.pixels import crops, place_on_canvas
from vision_remember.tiling import Resolution, Tiling

SIDE = {"height": 48, "width": 48}
DRAW = random.Random(3)
SIZES = [
    (1, 1),
    (48, 48),
    (300, 4),
    (4, 300),
    (47, 48),
    *((DRAW.randint(1, 300), DRAW.randint(4, 300)) for _ in range(25)),
]


def canvases(mode: str, pinpoints=()) -> Canvases:
    processor = CLIPImageProcessorPil(size=SIDE, crop_size=SIDE, do_center_crop=False)
    resolution = Resolution(mode=mode, pinpoints=tuple(map(tuple, pinpoints)))
    return Canvases(
        image_processor=processor, tiling=Tiling(resolution=resolution, canvas=(48, 48), token_grid=Grid(6, 6))
    )


@pytest.fixture(scope="module")
def images():
    return [page(seed, size) for seed, size in enumerate(SIZES)]


def test_crop_sees_the_pixels_of_llava(images):
    theirs = LlavaImageProcessorPil(size={"shortest_edge": 48}, crop_size=SIDE)
    for image in images:
        expected = theirs(image, return_tensors="pt")["pixel_values"]
        assert torch.equal(canvases("crop").pixels([image]), expected), image.size


def test_resize_sees_the_pixels_of_a_processor_that_stretches(images):
    theirs = LlavaImageProcessorPil(size=SIDE, do_center_crop=False)
    assert torch.equal(canvases("resize").pixels(images), theirs(images, return_tensors="pt")["pixel_values"])


def test_any_resolution_sees_the_views_of_llava_next(images):
    theirs = LlavaNextImageProcessorPil(size={"shortest_edge": 48}, crop_size=SIDE, image_grid_pinpoints=PINPOINTS)
    expected = theirs(images, return_tensors="pt")
    assert torch.equal(canvases("anyres", PINPOINTS).pixels(images), expected["pixel_values"])


def test_pad_is_llavas_square_up_to_the_order_of_resizing_and_padding():
    """Ours resizes first, so a long strip never becomes a huge square; the border may lie one pixel further."""
    image = page(1, (96, 48))  # both orders place this one alike
    theirs = LlavaImageProcessorPil(size={"shortest_edge": 48}, crop_size=SIDE, do_pad=True)
    difference = canvases("pad").pixels([image]) - theirs(image, return_tensors="pt")["pixel_values"]
    inside = difference[..., 14:34, :]  # away from the seam, over which bicubic resizing of the padded square blurs
    assert inside.abs().max() == 0


@pytest.mark.parametrize("mode", ["pad", "resize", "crop"])
def test_an_enlarged_page_is_brought_to_its_canvases_as_the_page_itself(mode):
    processor = canvases(mode).image_processor
    image = page(2, (90, 61))
    cut = crops(image, Grid(2, 2), (48, 48), processor, mode)
    whole = place_on_canvas(image, (96, 96), processor, mode)
    assert [crop.size for crop in cut] == [(48, 48)] * 4
    assert cut[3].tobytes() == whole.crop((48, 48, 96, 96)).tobytes()


def test_images_with_fewer_views_are_filled_up_with_zeros():
    one, three = torch.ones(1, 1, 3, 2, 2), torch.ones(2, 3, 3, 2, 2)
    stacked = stack_views([one, torch.empty(0, 1, 3, 2, 2), three])
    assert stacked.shape == (3, 3, 3, 2, 2)
    assert stacked.sum((2, 3, 4)).tolist() == [[12, 0, 0], [12, 12, 12], [12, 12, 12]]
