import pytest
import torch
from transformers import (
    Aimv2VisionConfig,
    AutoModel,
    BeitConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    DeiTConfig,
    IJepaConfig,
    InternVLVisionConfig,
    PixtralVisionConfig,
    Siglip2VisionConfig,
    SwinConfig,
    ViTMAEConfig,
)

from tests.model.families import ENCODERS, VISION
from vision_remember.geometry import Grid
from vision_remember.model.encoder import count_prefix_tokens, image_size, patch_grid


@pytest.mark.parametrize("family", ENCODERS)
def test_class_and_register_tokens_are_found_from_the_config(family):
    config, expected = ENCODERS[family]
    config = config.vision_config if "vision_config" in config.sub_configs else config
    assert count_prefix_tokens(config) == expected
    tokens = AutoModel.from_config(config)(torch.zeros(1, 3, 48, 48)).last_hidden_state.shape[1]
    assert tokens == expected + patch_grid(config).num_cells


INTERN = InternVLVisionConfig(**{**VISION, "image_size": [48, 48], "patch_size": [8, 8]})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DeiTConfig(**VISION), 2),
        (BeitConfig(**VISION), 1),
        (Aimv2VisionConfig(**VISION), 0),
        (IJepaConfig(**VISION), 0),
        (INTERN, 1),
    ],
)
def test_an_encoder_that_nobody_named_is_read_as_well(config, expected):
    assert count_prefix_tokens(config) == expected


def test_looking_takes_no_memory_and_no_random_numbers():
    huge = CLIPVisionConfig(hidden_size=4096, intermediate_size=16384, num_hidden_layers=48, num_attention_heads=32)
    before = torch.random.get_rng_state()
    assert count_prefix_tokens(huge) == 1  # 10 billion weights
    assert torch.equal(torch.random.get_rng_state(), before)


def test_sides_may_be_given_one_by_one():
    config = DeiTConfig(**{**VISION, "image_size": [48, 32], "patch_size": [8, 8]})
    assert image_size(config) == (48, 32) and patch_grid(config) == Grid(6, 4)
    with pytest.raises(ValueError, match="patches of 8 x 4 pixels"):
        patch_grid(DeiTConfig(**{**VISION, "patch_size": [8, 4]}))


SWIN = {"image_size": 56, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 7}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Siglip2VisionConfig(), "siglip2_vision_model cannot be read: it is a NaFlex encoder.*fixed resolution"),
        (SwinConfig(**SWIN), "swin leaves 3 hidden states of 2 shapes, a plain ViT of 2 layers leaves 3 of one"),
        (ConvNextConfig(), "convnext .* use a ViT-like encoder"),
        (ViTMAEConfig(**VISION), "vit_mae makes 10 tokens of a 48 x 48 image, its 6x6 patch grid has 36 cells"),
        (
            PixtralVisionConfig(image_size=64, num_hidden_layers=1),
            r"pixtral makes 32 tokens of a 64 x 64 image.*4x4 patch",
        ),
    ],
    ids=["naflex", "swin", "convnext", "mae", "pixtral"],
)
def test_an_encoder_without_a_plain_grid_is_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        count_prefix_tokens(config)
