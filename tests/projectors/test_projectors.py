"""The part of a whole model of transformers that is a projector loads from its state dict as it is, and gives the same tokens.

The names are those of the models themselves, with every prefix they save under, so a library that renames them fails here.
"""

import pytest
import torch
from transformers import (
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from tests.projectors import parity
from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.projectors import build_projector

C, D = 8, 16
CLIP = {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8}
VISION = {"hidden_size": C, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {"hidden_size": D, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
LLAMA = {"model_type": "llama", "num_key_value_heads": 1, **TEXT}
PERCEIVER = {"resampler_n_latents": 4, "resampler_depth": 2, "resampler_n_heads": 4, "resampler_head_dim": 6}
RESAMPLER = {"num_latents": 4, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "head_width": 6, "intermediate_size": 20}
MODELS = {
    "llava": (LlavaForConditionalGeneration, LlavaConfig(vision_config={**CLIP, **VISION}, text_config=LLAMA)),
    "llava_next": (
        LlavaNextForConditionalGeneration,
        LlavaNextConfig(vision_config={**CLIP, **VISION}, text_config=LLAMA),
    ),
    "idefics3": (Idefics3ForConditionalGeneration, Idefics3Config(vision_config=VISION, text_config=LLAMA)),
    "smolvlm": (SmolVLMForConditionalGeneration, SmolVLMConfig(vision_config=VISION, text_config=LLAMA)),
    "internvl": (
        InternVLForConditionalGeneration,
        InternVLConfig(vision_config={"model_type": "internvl_vision", **VISION}, text_config=LLAMA),
    ),
    "idefics2": (
        Idefics2ForConditionalGeneration,
        Idefics2Config(
            vision_config=VISION,
            text_config={**LLAMA, "model_type": "mistral"},
            perceiver_config={"hidden_size": D, "num_key_value_heads": 2, **PERCEIVER},
        ),
    ),
}
OURS = {
    "llava": {"type": "mlp"},
    "llava_next": {"type": "mlp"},
    "idefics3": {"type": "pixel_shuffle", "head": "idefics3"},
    "smolvlm": {"type": "pixel_shuffle", "head": "idefics3"},
    "internvl": {"type": "pixel_shuffle"},
    "idefics2": {"type": "resampler", **RESAMPLER},
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_the_projector_of_a_whole_model_loads_under_its_own_names_and_gives_the_same_tokens(name):
    model_class, config = MODELS[name]
    torch.manual_seed(0)
    whole = model_class(config).eval()
    theirs = whole.model.get_submodule("connector" if "idefics" in name or "smol" in name else "multi_modal_projector")
    for parameter in theirs.parameters():
        parameter.normal_(std=0.3)
    seen = parity.see((-1, -2), Grid(4, 4), C)
    features = VisionFeatures(levels={level: x.float() for level, x in seen.levels.items()}, grid=seen.grid)
    answers = []
    for holder in (whole, whole.model, theirs):
        ours = build_projector(**OURS[name], feature_width=C, text_width=D)
        weights = holder.state_dict()
        if holder is not theirs:
            weights = {
                key: value for key, value in weights.items() if ".connector." in f".{key}" or "_projector." in key
            }
        ours.load_original(weights)
        answers.append(ours(features))
    [level] = ours.levels
    x = features.level(level)
    if name == "internvl":
        x = whole.model.pixel_shuffle(x.view(2, 4, 4, C), scale_factor=0.5).flatten(1, 2)
    expected = theirs(x, torch.ones(2, 16, dtype=torch.bool)) if name == "idefics2" else theirs(x)
    for tokens in answers:
        assert (tokens - expected).abs().max() <= 1e-5  # float32, sums in another order
