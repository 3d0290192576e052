"""What `list` says of the model of the paper, against sums made from the shapes of its layers."""

import pytest
from rich.console import Console

from vision_remember import cli_list, plugins

LAYERS, D, KV, INNER, VOCABULARY = 28, 1536, 256, 8960, 151936  # Qwen2-1.5B
BLOCKS, C, PATCHES = 24, 1024, 576  # CLIP-L/14-336


def encoder_flops() -> int:
    patches, tokens = PATCHES * 3 * 14 * 14 * C, PATCHES + 1
    block = tokens * (4 * C * C + 2 * C * 4 * C) + 2 * tokens**2 * C
    return 2 * (patches + BLOCKS * block)


def decoder_flops(tokens: int) -> int:
    layer = tokens * (2 * D * D + 2 * D * KV + 3 * D * INNER) + 2 * tokens**2 * D
    return 2 * (LAYERS * layer + D * VOCABULARY)


@pytest.fixture(scope="module")
def without() -> int:
    """FLOPs of the prefill with 144 tokens of average pooling and no re-fusion."""
    return cli_list.prefill_total(cli_list.paper_model(cli_list.BASE, {"type": "none"}))


def test_the_prefill_is_the_sum_of_its_matrices(without):
    projector = 2 * 144 * (C * D + D * D)
    assert without == encoder_flops() + projector + decoder_flops(144 + cli_list.NUM_TEXT_TOKENS)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "guidance": True}], ids=["v1", "v2"])
def test_three_insertions_of_remember_add_at_most_three_percent(without, options):
    model = cli_list.paper_model(cli_list.BASE, {"type": "remember", "margin": 0, **options})
    assert len(model.model.refusion.layers) == 3
    assert 0 < cli_list.prefill_total(model) - without <= 0.03 * without


def test_every_plug_in_says_where_it_comes_from():
    for room in ("projectors", "refusion"):
        for name in plugins.names(room):
            module = plugins.load(room, name)
            origin = module.ORIGIN
            assert (origin.code is None) == (origin.licence is None), f"{room}/{name}: code comes with its licence"
            has_none = name == "none" or "from no paper" in (module.__doc__ or "")
            assert origin.paper or has_none, f"{room}/{name} names no paper"


def test_a_table_shows_billions_and_a_dash_for_what_there_is_none_of():
    row = {"name": "p", "tokens": 4, "flops": 2_500_000_000, "layers": [0, 4], "paper": None, "about": "One line."}
    [table] = cli_list.tables({"projectors": [row]})
    console = Console(width=100, record=True)
    console.print(table)
    assert console.export_text().split("\n")[-2].split() == ["p", "4", "2.50", "0", "4", "-"]
