"""Any resolution: counts and choices against transformers and the original rule over random sizes, and where every token comes from."""

import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from vision_remember.geometry import Grid
from vision_remember.tiling import NEWLINE, Resolution, Tiling, best_resolution, content, seen_patches, unpadded

PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
GRIDS = tuple(
    tuple(336 * side for side in grid) for grid in ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (3, 2), (1, 4), (6, 6))
)

sides = st.integers(1, 4000)
sizes = st.tuples(sides, sides)
strips = st.tuples(st.integers(1, 12), st.integers(1000, 10_000)).flatmap(
    lambda pair: st.sampled_from([pair, pair[::-1]])
)


def tiling(grid: Grid, *, rule: str = "transformers", pinpoints=PINPOINTS, is_set: bool = False) -> Tiling:
    resolution = Resolution(mode="anyres", pinpoints=pinpoints, rule=rule)
    return Tiling(resolution=resolution, canvas=(336, 336), token_grid=grid, is_set=is_set)


@settings(max_examples=500, deadline=None)
@given(st.one_of(sizes, strips), st.sampled_from([PINPOINTS, GRIDS, GRIDS[::-1]]))
def test_the_choice_is_that_of_transformers(size, pinpoints):
    assert best_resolution(size, pinpoints) == select_best_resolution(size, pinpoints)


MIRRORED = (*GRIDS[:5], (336, 1344), (1344, 336))


def originals_choice(size, pinpoints):
    """LLaVA-NeXT's `select_best_resolution` (`llava/mm_utils.py`), sides as (width, height), with what it keeps and wastes of each."""
    best, most, least = None, 0, float("inf")
    for sides in pinpoints:
        scale = min(sides[0] / size[0], sides[1] / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        wasted = sides[0] * sides[1] - kept
        if kept > most or (kept == most and wasted < least):
            best, most, least = sides, kept, wasted
    return best, (most, least)


def random_sizes(count):
    """Pages, small pages and strips as (width, height)."""
    rng = random.Random(0)
    for number in range(count):
        short, long = [(rng.randint(1, 4000), rng.randint(1, 4000)), (rng.randint(1, 336), rng.randint(1, 336))][
            number % 2
        ]
        yield rng.choice([(short, long), (rng.randint(1, 12), 30 * short)[:: rng.choice([1, -1])]])


@pytest.mark.parametrize("pinpoints", [PINPOINTS, GRIDS, GRIDS[::-1], MIRRORED])
def test_the_choice_by_the_originals_rule_is_that_of_the_original(pinpoints):
    ours = tiling(Grid(1, 1), pinpoints=pinpoints, rule="llava_next")
    for size in random_sizes(3000):
        assert ours.layout(size[::-1]).canvas[::-1] == originals_choice(size, pinpoints)[0], size


@pytest.mark.parametrize("pinpoints", [PINPOINTS, MIRRORED])
def test_the_choice_of_transformers_is_that_of_the_original_but_for_ties(pinpoints):
    """Of sizes that are their own mirror image as a set; docs/llava_checkpoints.md tells of the ties."""
    theirs, num_ties = tiling(Grid(1, 1), pinpoints=pinpoints), 0
    for size in random_sizes(3000):
        chosen, merit = originals_choice(size, pinpoints)
        if (other := theirs.layout(size[::-1]).canvas[::-1]) != chosen:
            assert originals_choice(size, [other])[1] == merit, size
            num_ties += 1
    assert 0 < num_ties < 3000


@settings(max_examples=500, deadline=None)
@given(st.one_of(sizes, strips), st.sampled_from([PINPOINTS, GRIDS]), st.sampled_from([24, 12, 8, 6, 5]))
def test_the_count_is_that_of_transformers_processor(size, pinpoints, side):
    theirs = SimpleNamespace(image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints), patch_size=336 // side)
    theirs.num_additional_image_tokens = 0
    theirs._get_unpadded_features = lambda *args: LlavaNextProcessor._get_unpadded_features(theirs, *args)
    expected = LlavaNextProcessor._get_number_of_features(theirs, *size, 336, 336)
    if 336 // (336 // side) == side:  # a patch of that size makes this grid
        assert tiling(Grid(side, side), pinpoints=pinpoints).layout(size).num_tokens == expected


@settings(max_examples=100, deadline=None)
@given(st.one_of(sizes, strips), st.sampled_from([24, 6, 5]))
def test_the_tokens_are_those_that_transformers_packs(size, side):
    """The steps of `LlavaNextModel.pack_image_features` on numbered tokens: base, mosaic, unpad, newline."""
    layout = tiling(Grid(side, side)).layout(size)
    num_tokens = layout.num_views * side * side
    base, rest = torch.arange(num_tokens).tensor_split([side * side])
    tiles = rest.view(layout.tiles.height, layout.tiles.width, side, side, 1)
    mosaic = unpad_image(tiles.permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3), list(size))[0]
    rows = [torch.cat([row, torch.tensor([NEWLINE])]) for row in mosaic]
    assert torch.equal(layout.source, torch.cat([base, *rows]))


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ((336, 336), (1176, 300, 136, 78)),
        ((640, 480), (2340, 594, 268, 166)),
        ((480, 640), (2352, 600, 272, 168)),
        ((672, 672), (2928, 744, 336, 192)),
        ((1000, 1000), (2928, 744, 336, 192)),
        ((1280, 720), (1948, 494, 234, 114)),
        ((1920, 1080), (1948, 494, 234, 114)),
        ((2000, 500), (1890, 514, 214, 112)),
        ((500, 2000), (1944, 540, 232, 126)),
        ((1654, 2339), (2256, 552, 272, 144)),
    ],
)
def test_counts_of_usual_pages_on_coarser_and_coarser_grids(size, counts):
    """Sizes as width x height, read by the original's rule; grids of 24 (no compression), 12, 8 and 6 tokens per side."""
    found = tuple(tiling(Grid(side, side), rule="llava_next").layout(size[::-1]).num_tokens for side in (24, 12, 8, 6))
    assert found == counts


@pytest.mark.parametrize(("size", "original", "transformers"), [((320, 240), 1026, 1368), ((300, 200), 976, 1464)])
def test_small_pages_lie_across_two_tiles_in_transformers_and_along_them_in_the_original(size, original, transformers):
    counts = [tiling(Grid(24, 24), rule=rule).layout(size[::-1]).num_tokens for rule in ("llava_next", "transformers")]
    assert counts == [original, transformers]


@pytest.mark.parametrize(
    ("size", "tiles", "original", "transformers"),
    [((88, 55), Grid(2, 1), 14, 16), ((328, 861), Grid(3, 1), 62, 64)],
)
def test_a_row_that_is_whole_up_to_rounding_is_kept_by_transformers_alone(size, tiles, original, transformers):
    canvas, mosaic = (336 * tiles.height, 336 * tiles.width), Grid(24 * tiles.height, 24 * tiles.width)
    for rule, expected in (("llava_next", original), ("transformers", transformers)):
        rows, columns = unpadded(size[::-1], canvas, mosaic, rule)
        assert len(range(mosaic.height)[rows]) == expected and columns == slice(None)


@settings(max_examples=200, deadline=None)
@given(st.one_of(sizes, strips))
def test_the_image_lies_where_transformers_pastes_it(size):
    canvas = best_resolution(size, PINPOINTS)
    height, width = get_patch_output_size(torch.empty(1).expand(3, *size).numpy(), canvas, "channels_first")
    assert content(size, canvas) == ((canvas[0] - height) // 2, (canvas[1] - width) // 2, height, width)


@settings(max_examples=100, deadline=None)
@given(st.one_of(sizes, strips), st.tuples(st.integers(1, 7), st.integers(1, 7)), st.booleans())
def test_every_token_has_its_place_in_its_view(size, grid, is_set):
    layout = tiling(Grid(*grid), is_set=is_set).layout(size)
    num_tokens = grid[0] * grid[1]
    is_newline = layout.source == NEWLINE
    assert torch.equal(is_newline, layout.count == 0)
    assert layout.source[~is_newline].unique().numel() == (~is_newline).sum(), "no token stands twice"
    for view in range(layout.num_views):
        own = (layout.view == view) & ~is_newline
        assert torch.equal(layout.view[own], layout.source[own] // num_tokens)
        assert layout.index[own].tolist() == list(range(int(own.sum())))
        assert layout.count[own].eq(own.sum()).all()
    assert layout.source[:num_tokens].tolist() == list(range(num_tokens)), "the base view comes first, whole"


def test_tokens_without_places_keep_every_view_whole_and_end_each_with_one_newline():
    layout = tiling(Grid(1, 4), is_set=True).layout((700, 1000))
    assert layout.num_views == 5
    assert layout.source.view(5, 5).tolist() == [[4 * view + i for i in range(4)] + [NEWLINE] for view in range(5)]


@pytest.mark.parametrize("mode", ["pad", "resize", "crop"])
def test_one_canvas_is_one_view_without_a_newline(mode):
    plain = Tiling(resolution=Resolution(mode=mode), canvas=(48, 48), token_grid=Grid(2, 3))
    layout = plain.layout((10_000, 10))
    assert (layout.num_views, layout.source.tolist(), plain.max_views) == (1, list(range(6)), 1)


def test_the_largest_image_has_the_most_tokens():
    mirrored = tiling(Grid(12, 12), pinpoints=MIRRORED)
    assert mirrored.layout(mirrored.largest).num_tokens == max(
        mirrored.layout(size).num_tokens for size in mirrored.candidates
    )


@settings(max_examples=100, deadline=None)
@given(sizes)
def test_patches_that_are_seen_are_those_that_a_painted_image_reaches(size):
    layout = tiling(Grid(6, 6)).layout(size)
    top, left, height, width = content(size, layout.canvas)
    canvas = torch.zeros(layout.canvas, dtype=torch.bool)
    canvas[top : top + height, left : left + width] = True
    tiles = canvas.view(layout.tiles.height, 336, layout.tiles.width, 336).transpose(1, 2).flatten(0, 1)
    painted = tiles.view(-1, 24, 14, 24, 14).any(4).any(2).flatten(1)
    seen = seen_patches(size, layout, (336, 336), Grid(24, 24), 14)
    assert seen[0].all() and torch.equal(seen[1:], painted)


def test_an_image_too_thin_for_a_row_of_tokens_keeps_its_base_view():
    layout = tiling(Grid(24, 24)).layout((10, 10_000))
    assert layout.num_tokens == 576 and layout.num_views == 4


def test_default_pinpoints_are_those_of_llava_next_for_any_canvas():
    default = Tiling(resolution=Resolution(mode="anyres"), canvas=(384, 384), token_grid=Grid(27, 27))
    assert default.candidates == ((384, 768), (768, 384), (768, 768), (1152, 384), (384, 1152))
    assert default.max_views == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "pad", "pinpoints": ((336, 672),)}, "mode 'pad' has no pinpoints and no rule"),
        ({"mode": "crop", "rule": "llava_next"}, "mode 'crop' has no pinpoints and no rule"),
        ({"mode": "anyres", "pinpoints": ((336, 672, 1),)}, r"a pinpoint is two sides in pixels, got \[336, 672, 1\]"),
        ({"mode": "anyres", "pinpoints": ((336, 600),)}, "336x600 pixels .* no whole number of 336x336 canvases"),
    ],
)
def test_what_cannot_be_tiled_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Tiling(resolution=Resolution(**options), canvas=(336, 336), token_grid=Grid(24, 24))


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match="at least one pixel, got 0x3"):
        tiling(Grid(24, 24)).layout((0, 3))
