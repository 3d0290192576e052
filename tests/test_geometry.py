"""Grids and windows: properties over random grids, and the worked examples of the docstrings."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vision_remember.geometry import (
    Grid,
    VisionFeatures,
    closest_grid,
    encoder_grid,
    gather_windows,
    lattice_distances,
    square_grid,
    windows,
)

sides = st.integers(1, 13)


@st.composite
def grid_pairs(draw) -> tuple[Grid, Grid]:
    fine = Grid(draw(sides), draw(sides))
    return fine, Grid(draw(st.integers(1, fine.height)), draw(st.integers(1, fine.width)))


@settings(max_examples=80, deadline=None)
@given(grid_pairs(), st.integers(0, 2))
def test_every_patch_belongs_to_a_window_and_no_window_is_empty(pair, margin):
    fine, coarse = pair
    own = windows(fine, coarse, margin)
    assert own.index.shape == own.valid.shape and len(own.index) == coarse.num_cells
    assert set(own.index[own.valid].tolist()) == set(range(fine.num_cells))
    assert own.valid.any(dim=1).all()
    assert own.index.min() >= 0 and own.index.max() < fine.num_cells, "empty slots too must be safe to gather"
    for index, valid in zip(own.index, own.valid, strict=True):
        assert index[valid].unique().numel() == valid.sum(), "no patch is seen twice in one window"


@settings(max_examples=80, deadline=None)
@given(grid_pairs(), st.integers(0, 2))
def test_a_window_covers_its_cell_grown_by_the_margin_and_nothing_else(pair, margin):
    fine, coarse = pair
    own = windows(fine, coarse, margin)

    def span(cell: int, fine_side: int, coarse_side: int) -> set[int]:
        """Patches that overlap the cell [cell, cell + 1) / coarse_side, and the margin."""
        inside = [
            p
            for p in range(fine_side)
            if p * coarse_side < (cell + 1) * fine_side and (p + 1) * coarse_side > cell * fine_side
        ]
        return {p for p in range(inside[0] - margin, inside[-1] + margin + 1) if 0 <= p < fine_side}

    for token in range(coarse.num_cells):
        rows = span(token // coarse.width, fine.height, coarse.height)
        columns = span(token % coarse.width, fine.width, coarse.width)
        expected = {row * fine.width + column for row in rows for column in columns}
        assert set(own.index[token][own.valid[token]].tolist()) == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_integer_ratios_give_exact_cells(height, width, row_scale, column_scale):
    fine, coarse = Grid(height * row_scale, width * column_scale), Grid(height, width)
    own = windows(fine, coarse)
    assert own.valid.all() and own.index.shape[1] == row_scale * column_scale
    patches = torch.arange(fine.num_cells).view(height, row_scale, width, column_scale)
    assert torch.equal(own.index, patches.transpose(1, 2).reshape(coarse.num_cells, -1))


@settings(max_examples=40, deadline=None)
@given(grid_pairs())
def test_the_mean_of_a_window_is_adaptive_average_pooling(pair):
    fine, coarse = pair
    x = torch.randn(2, fine.num_cells, 3, dtype=torch.float64)
    own = windows(fine, coarse)
    gathered = gather_windows(x, own) * own.valid[..., None]
    means = gathered.sum(2) / own.valid.sum(1)[:, None]
    pooled = F.adaptive_avg_pool2d(
        x.transpose(1, 2).unflatten(2, (fine.height, fine.width)), (coarse.height, coarse.width)
    )
    torch.testing.assert_close(means, pooled.flatten(2).transpose(1, 2))


@settings(max_examples=60, deadline=None)
@given(grid_pairs(), st.integers(0, 2), st.integers(1, 6))
def test_the_position_table_keeps_the_order_of_a_window_and_mirrors_with_it(pair, margin, table_side):
    own = windows(*pair, margin)
    place = own.table_index(table_side)
    assert place.min() >= 0 and place.max() < table_side**2
    row, column = place // table_side, place % table_side
    for token in range(len(place)):
        height, width = own.side[token].tolist()
        real = (own.offset[token] < own.side[token]).all(-1)
        offsets = own.offset[token][real]
        order = offsets[:, 0].argsort(stable=True)
        assert (row[token][real][order].diff() >= 0).all()
        if table_side % 2 and table_side >= max(height, width):
            seen = set(zip(row[token][real].tolist(), column[token][real].tolist(), strict=True))
            assert len(seen) == height * width, "a table as large as the window tells all its patches apart"


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
def test_the_default_table_is_symmetric_to_every_window_up_to_its_own_side(side):
    own = windows(Grid(side, side), Grid(1, 1))
    rows = (own.table_index(5)[0] // 5).view(side, side)[:, 0]
    assert rows.unique().numel() == side
    assert torch.equal(rows + rows.flip(0), torch.full_like(rows, 4))


@pytest.mark.parametrize(("side", "places"), [(5, 4), (5, 9), (5, 12), (3, 9), (7, 16), (1, 3)])
def test_places_are_the_centres_of_a_lattice_and_further_ones_begin_again(side, places):
    lattice = math.isqrt(places)
    distances = lattice_distances(side, places)
    assert distances.shape == (side**2, places)
    for place in range(places):
        centre = [(at % lattice + 0.5) / lattice for at in (place // lattice, place)]
        for cell in range(side**2):
            offsets = [((at + 0.5) / side - c) * lattice for at, c in zip(divmod(cell, side), centre, strict=True)]
            assert distances[cell, place].item() == pytest.approx(sum(x * x for x in offsets), abs=1e-5)
    assert torch.equal(distances[:, lattice**2 :], distances[:, : places - lattice**2])


def test_a_window_at_the_border_keeps_its_places_when_the_margin_leaves_the_image():
    own = windows(Grid(4, 4), Grid(2, 2), margin=1)
    assert own.index.shape == (4, 16)
    inner = own.valid[0].view(4, 4)
    assert not inner[0].any() and not inner[:, 0].any() and inner[1:, 1:].all()
    assert torch.equal(own.table_index(4)[0], torch.arange(16))


def test_windows_made_in_inference_mode_serve_training_later():
    with torch.inference_mode():
        windows(Grid(6, 6), Grid(2, 2))
    x = torch.randn(1, 36, 2, requires_grad=True)
    gather_windows(x, windows(Grid(6, 6), Grid(2, 2))).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_gathering_windows_is_compile_safe():
    def gather(x):
        return gather_windows(x, windows(Grid(5, 4), Grid(2, 3), margin=1))

    x = torch.randn(2, 20, 3)
    assert torch.equal(torch.compile(gather, backend="eager", fullgraph=True)(x), gather(x))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), sides, sides)
def test_the_closest_grid_has_exactly_the_cells_and_no_closer_one_exists(num_cells, height, width):
    like = Grid(height, width)
    best = closest_grid(num_cells, like)
    assert best.num_cells == num_cells

    def distance(grid: Grid) -> float:
        ratio = grid.height / grid.width / (height / width)
        return max(ratio, 1 / ratio)

    others = [Grid(rows, num_cells // rows) for rows in range(1, num_cells + 1) if num_cells % rows == 0]
    assert distance(best) <= min(map(distance, others)) * (1 + 1e-12)


def test_token_counts_are_plain_arithmetic():
    assert square_grid(64) == Grid(8, 8) and square_grid(12) == Grid(3, 4) and square_grid(7) == Grid(1, 7)
    assert encoder_grid(336, 340, 14) == Grid(24, 24)
    assert Grid(24, 25).reduced(3) == Grid(8, 9) and str(Grid(8, 9)) == "8x9" and Grid(8, 9).num_cells == 72


def test_features_are_read_by_the_index_they_were_given():
    levels = {13: torch.randn(2, 6, 4), -2: torch.randn(2, 6, 4)}
    features = VisionFeatures(levels=levels, grid=Grid(2, 3))
    assert features.level(-2) is levels[-2]
    assert torch.equal(features.stack([-2, 13])[:, :, 1], levels[13])


@pytest.mark.parametrize(
    ("mistake", "numbers"),
    [
        (lambda: Grid(0, 3), "0x3"),
        (lambda: Grid(2, 3).reduced(0), "2x3.*0"),
        (lambda: VisionFeatures(levels={3: torch.zeros(1, 5, 2)}, grid=Grid(2, 3)), "5.*6 patches"),
        (lambda: VisionFeatures(levels={3: torch.zeros(1, 6, 2)}, grid=Grid(2, 3)).level(4), r"4.*\[3\]"),
        (lambda: windows(Grid(3, 9), Grid(4, 4)), "4x4.*3x9"),
        (lambda: windows(Grid(3, 9), Grid(1, 1), margin=-1), "-1"),
        (lambda: encoder_grid(13, 100, 14), "13x100.*14x14"),
        (lambda: square_grid(0), "0 cells"),
    ],
)
def test_mistakes_are_refused_with_both_numbers(mistake, numbers):
    with pytest.raises(ValueError, match=numbers):
        mistake()
