"""Space to depth by hand: channels ordered by row in the cell, column in the cell, channel. And against transformers."""

import pytest
import torch
from transformers import Idefics3Config, InternVLConfig, LlamaConfig, Qwen2Config, SmolVLMConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector

from tests.projectors import parity
from vision_remember.geometry import Grid
from vision_remember.projectors import build_projector

GRIDS = [(Grid(4, 4), 2), (Grid(2, 6), 2), (Grid(6, 3), 3), (Grid(3, 5), 1), (Grid(8, 4), 4)]


def shapes(head, scale):
    width = 3 * scale**2
    if head == "idefics3":
        return {"modality_projection.proj.weight": (5, width)}
    return {
        "mlp1.0.weight": (width,),
        "mlp1.0.bias": (width,),
        "mlp1.1.weight": (5, width),
        "mlp1.1.bias": (5,),
        "mlp1.3.weight": (5, 5),
        "mlp1.3.bias": (5,),
    }


@pytest.mark.parametrize("head", ["internvl", "idefics3"])
@pytest.mark.parametrize(("grid", "scale"), GRIDS, ids=str)
def test_a_token_is_its_cell_laid_end_to_end(grid, scale, head):
    def plain(weights, features):
        tokens = []
        for patches in parity.bins(grid, Grid(grid.height // scale, grid.width // scale)):
            tokens.append(torch.cat([features.level(-1)[:, patch] for patch in patches], dim=1))
        x = torch.stack(tokens, 1)
        if head == "idefics3":
            return x @ weights["modality_projection.proj.weight"].T
        x = parity.layer_norm(x, weights["mlp1.0.weight"], weights["mlp1.0.bias"], 1e-5)
        return parity.mlp(x, weights, "mlp1.1", "mlp1.3")

    options = {"type": "pixel_shuffle", "scale": scale, "head": head}
    parity.agrees(options, shapes(head, scale), plain, grid, 3, 5)


@pytest.mark.parametrize(
    ("head", "prefixes"), [("internvl", ("model.connector.",)), ("idefics3", ("model.connector.", "connector."))]
)
def test_the_weights_of_the_original_load_or_are_refused_by_name(head, prefixes):
    options = {"type": "pixel_shuffle", "head": head}
    parity.loads_strictly(options, shapes(head, 2), 3, 5, prefixes=prefixes)


def test_the_weights_of_the_other_head_are_refused():
    projector = build_projector("pixel_shuffle", feature_width=3, text_width=5, head="idefics3")
    with pytest.raises(ValueError, match=r"missing: modality_projection.proj.weight\n  unexpected: mlp1.0.weight, "):
        projector.load_original(parity.draw(shapes("internvl", 2)))


def test_internvl_of_transformers_gives_the_same_tokens():
    config = InternVLConfig(
        vision_config={"model_type": "internvl_vision", "hidden_size": 8, "num_attention_heads": 2},
        text_config=Qwen2Config(hidden_size=16, num_attention_heads=2, num_key_value_heads=2),
    )
    torch.manual_seed(0)
    theirs = InternVLMultiModalProjector(config).double()
    ours = build_projector("pixel_shuffle", feature_width=8, text_width=16).double()
    ours.load_original({f"model.multi_modal_projector.{name}": w for name, w in theirs.state_dict().items()})
    seen = parity.see((-1,), Grid(4, 4), 8)
    cells = InternVLModel.pixel_shuffle(None, seen.level(-1).view(2, 4, 4, 8), scale_factor=0.5)
    torch.testing.assert_close(ours(seen), theirs(cells.reshape(2, 4, -1)))


@pytest.mark.parametrize(
    ("config_class", "connector_class"), [(Idefics3Config, Idefics3Connector), (SmolVLMConfig, SmolVLMConnector)]
)
def test_idefics3_and_smolvlm_of_transformers_give_the_same_tokens(config_class, connector_class):
    config = config_class(
        vision_config={"hidden_size": 8, "num_attention_heads": 2},
        text_config=LlamaConfig(hidden_size=16, num_attention_heads=2),
        scale_factor=3,
    )
    torch.manual_seed(0)
    theirs = connector_class(config).double()
    ours = build_projector("pixel_shuffle", feature_width=8, text_width=16, scale=3, head="idefics3").double()
    ours.load_original({f"model.connector.{name}": w for name, w in theirs.state_dict().items()})
    seen = parity.see((-1,), Grid(6, 6), 8)
    torch.testing.assert_close(ours(seen), theirs(seen.level(-1)))


def test_a_grid_that_does_not_divide_is_refused():
    projector = build_projector("pixel_shuffle", feature_width=3, text_width=5, scale=2)
    with pytest.raises(ValueError, match="grid 5x4 is not divisible by scale 2"):
        projector.tokens_out(Grid(5, 4))


def test_the_head_of_idefics3_is_one_linear_without_bias():
    projector = build_projector("pixel_shuffle", feature_width=3, text_width=5, scale=3, head="idefics3")
    assert {name: tuple(p.shape) for name, p in projector.named_parameters()} == {"head.weight": (5, 27)}
