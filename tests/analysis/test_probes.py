"""A probe reads what is linearly there, nothing where nothing is, and never sees the pages it is scored on."""

import pytest
import torch

from vision_remember.analysis.probes import (
    NO_CHARACTER,
    chance,
    characters_under,
    features_of_cells,
    probe,
    split_pages,
)
from vision_remember.data.synthetic import make_page
from vision_remember.data.synthetic.canvas import CELL_CLASSES, CHARACTERS
from vision_remember.geometry import Grid

NUM_KINDS = 5  # characters that the made-up pages use


def made_up(pages: int = 60, tokens: int = 4, slots: int = 2) -> torch.Tensor:
    """Random characters `long[pages, tokens, slots]`, a fifth of the cells blank."""
    generator = torch.Generator().manual_seed(0)
    characters = torch.randint(NUM_KINDS, (pages, tokens, slots), generator=generator)
    is_blank = torch.rand(characters.shape, generator=generator) < 0.2
    return characters.masked_fill(is_blank, NO_CHARACTER)


def states_that_show(characters: torch.Tensor, slots: list[int]) -> torch.Tensor:
    """States `[pages, tokens, 16]` in which a random linear map hides the characters of some slots."""
    generator = torch.Generator().manual_seed(1)
    shown = torch.nn.functional.one_hot(characters[:, :, slots] + 1, NUM_KINDS + 1).float().flatten(2)
    mixed = shown @ torch.randn(shown.shape[2], 16, generator=generator)
    return mixed + 0.01 * torch.randn(mixed.shape, generator=generator)


def test_what_is_linearly_there_is_read() -> None:
    characters = made_up()
    assert probe(states_that_show(characters, [0, 1]), characters, split_pages(60)).accuracy > 0.95


def test_a_slot_that_is_not_there_is_guessed() -> None:
    characters = made_up()
    score = probe(states_that_show(characters, [0]), characters, split_pages(60))
    assert 0.5 < score.accuracy < 0.75  # one slot of two, and a fifth of the other by chance


def test_states_that_never_differ_say_what_is_most_frequent() -> None:
    characters = made_up(slots=1)
    split = split_pages(60)
    assert probe(torch.zeros(60, 4, 3), characters, split).accuracy == pytest.approx(chance(characters, split).accuracy)


def test_what_was_learned_by_heart_is_not_scored() -> None:
    characters = made_up(slots=1)
    states = torch.randn(
        60, 4, 300, generator=torch.Generator().manual_seed(2)
    )  # wide enough to tell every token apart
    assert probe(states, characters, split_pages(60)).accuracy < 0.4


def test_only_characters_of_held_out_pages_are_scored() -> None:
    characters, split = made_up(), split_pages(60)
    characters[split.held_out] = NO_CHARACTER
    characters[split.held_out[0], 0, 0] = 1
    states = states_that_show(characters, [0, 1])
    assert probe(states, characters, split).written.tolist() == [1] + 14 * [0]
    characters[split.held_out] = NO_CHARACTER
    with pytest.raises(ValueError, match="15 held-out pages"):
        probe(states, characters, split)


def test_every_page_is_in_one_part() -> None:
    split = split_pages(40)
    assert torch.cat([split.fitting, split.choosing, split.held_out]).sort().values.tolist() == list(range(40))
    with pytest.raises(ValueError, match="3 pages"):
        split_pages(3)


def cells_of(place: int, size: int) -> slice:
    """The cells of a side of 12 that a token of a side of `size` covers, or the one that holds its centre."""
    if size > 12:
        centre = int((place + 0.5) / size * 12)
        return slice(centre, centre + 1)
    return slice(place * 12 // size, -(-(place + 1) * 12 // size))


@pytest.mark.parametrize("grid", [Grid(4, 4), Grid(12, 12), Grid(24, 24), Grid(8, 8), Grid(1, 16)])
def test_labels_say_what_the_page_says(grid: Grid) -> None:
    page = make_page("table", "test", 0, 0)
    under = characters_under(torch.from_numpy(page.cells)[None], grid)[0].view(grid.height, grid.width, -1)
    for row in range(grid.height):
        for column in range(grid.width):
            rows, columns = cells_of(row, grid.height), cells_of(column, grid.width)
            there = "".join(line[columns] for line in page.text[rows])
            found = "".join(CHARACTERS[i] for i in under[row, column].tolist() if i != NO_CHARACTER)
            assert found == "".join(cell for cell in there if cell in CHARACTERS)


def test_elements_are_no_characters() -> None:
    cells = torch.full((1, 12, 12), CELL_CLASSES.index("bar"))
    assert (characters_under(cells, Grid(4, 4)) == NO_CHARACTER).all()


def test_the_encoder_is_read_cell_by_cell() -> None:
    features = torch.arange(24 * 24).float().view(1, -1, 1)
    states, grid = features_of_cells(features, Grid(24, 24))
    assert grid == Grid(12, 12)
    assert states[0, 0].tolist() == [0, 1, 24, 25]
    states, grid = features_of_cells(features[:, :36], Grid(6, 6))
    assert (grid, states.shape) == (Grid(6, 6), (1, 36, 1))
