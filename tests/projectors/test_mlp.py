"""LLaVA's projector by hand, and against transformers'."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from tests.projectors import parity
from vision_remember.geometry import Grid
from vision_remember.projectors import build_projector

SHAPES = {"0.weight": (5, 3), "0.bias": (5,), "2.weight": (5, 5), "2.bias": (5,)}


def every_patch_by_itself(weights, features):
    rows = [[parity.mlp(x, weights, "0", "2") for x in image] for image in features.level(-2)]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("grid", [grid for grid, _ in parity.GRIDS], ids=str)
def test_every_patch_is_projected_by_itself(grid):
    parity.agrees({"type": "mlp"}, SHAPES, every_patch_by_itself, grid, 3, 5)


def test_the_weights_of_llava_load_or_are_refused_by_name():
    parity.loads_strictly({"type": "mlp"}, SHAPES, 3, 5, prefixes=("model.mm_projector.", "mm_projector."))


def test_the_projector_of_transformers_gives_the_same_tokens():
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=6, num_attention_heads=2),
        text_config=LlamaConfig(hidden_size=8, num_attention_heads=2),
        projector_hidden_act="gelu",
    )
    torch.manual_seed(0)
    theirs = LlavaMultiModalProjector(config).double()
    ours = build_projector("mlp", feature_width=6, text_width=8).double()
    ours.load_original({f"model.multi_modal_projector.{name}": w for name, w in theirs.state_dict().items()})
    seen = parity.see((-2,), Grid(3, 4), 6)
    torch.testing.assert_close(ours(seen), theirs(seen.level(-2)))


@pytest.mark.parametrize("depth", [1, 3])
def test_another_number_of_linears(depth):
    ours = build_projector("mlp", feature_width=3, text_width=5, depth=depth).double()
    shapes = {}
    for layer in range(depth):
        shapes |= {f"{2 * layer}.weight": (5, 5 if layer else 3), f"{2 * layer}.bias": (5,)}
    weights = parity.draw(shapes)
    ours.load_original(weights)
    seen = parity.see((-2,), Grid(2, 2), 3)
    x = seen.level(-2)
    for layer in range(depth):
        x = (parity.gelu(x) if layer else x) @ weights[f"{2 * layer}.weight"].T + weights[f"{2 * layer}.bias"]
    torch.testing.assert_close(ours(seen), x)
    with pytest.raises(ValueError, match="depth is at least 1, got 0"):
        build_projector("mlp", feature_width=3, text_width=5, depth=0)


def test_compression_is_refused_with_both_numbers():
    projector = build_projector("mlp", feature_width=3, text_width=5)
    with pytest.raises(ValueError, match="makes 6 tokens of a 2x3 grid, not 4"):
        projector.tokens_out(Grid(2, 3), num_tokens=4)
