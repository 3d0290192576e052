"""A bare `mm_projector` of the original LLaVA between two backbones: against its equations, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM

from tests.model.conftest import ask, page
from vision_remember.model.conversion import convert

CONFIG = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "_name_or_path": "lmsys/vicuna-7b-v1.5",
    "image_aspect_ratio": "pad",
}
ANYRES = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": [[48, 96], [96, 48], [96, 96]],
}
PROMPT = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}


def write(folder, config=None, newline: bool = False, **changes):
    """A folder as LLaVA's first stage leaves it, its pickle made into safetensors."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"model.mm_projector.{layer}.{name}": 0.2 * torch.randn(shape, generator=generator)
        for layer in (0, 2)
        for name, shape in (("weight", (32, 32)), ("bias", (32,)))
    }
    if newline:
        weights["model.image_newline"] = torch.randn(32, generator=generator)
    save_file(weights, folder / "mm_projector.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **(config or {}), **changes}))
    return weights


def projected(weights, x):
    x = torch.nn.functional.linear(x, weights["model.mm_projector.0.weight"], weights["model.mm_projector.0.bias"])
    x = torch.nn.functional.gelu(x)
    return torch.nn.functional.linear(x, weights["model.mm_projector.2.weight"], weights["model.mm_projector.2.bias"])


def test_the_model_is_encoder_projector_and_language_model_in_a_row(backbones, tmp_path):
    weights = write(tmp_path)
    vision, text = map(str, backbones)
    model, processor = convert(tmp_path, vision=vision, text=text, refusion={"type": "remember", "layers": [0, 2]})
    inputs = processor.apply_chat_template(ask("What?", page(1, (90, 61))), **PROMPT)
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(vision)(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2]
        language_model = AutoModelForCausalLM.from_pretrained(text)
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        embeds[inputs["input_ids"] == processor.image_token_id] = projected(weights, hidden[0, 1:])
        expected = language_model(inputs_embeds=embeds).logits
        found = model(**inputs).logits[..., : expected.shape[-1]]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert model.config.resolution == {"mode": "pad"} and model.config.vision_token_rms is None


def test_any_resolution_follows_the_original_rule_and_takes_the_newline(backbones, tmp_path):
    weights = write(tmp_path, ANYRES, newline=True)
    model, processor = convert(tmp_path, vision=str(backbones[0]), text=str(backbones[1]))
    assert model.config.resolution["rule"] == processor.tiling.resolution.rule == "llava_next"
    assert torch.equal(model.model.image_newline, weights["model.image_newline"])
    # Of two equal choices the original takes the portrait one, whose pinpoint [48, 96] it reads as (width, height).
    assert processor.tiling.layout((30, 40)).canvas == (96, 48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "linear"}, "'mm_projector_type': 'linear'.* an mlpNx_gelu projector"),
        ({"mm_vision_select_feature": "cls_patch"}, "'mm_vision_select_feature': 'cls_patch'"),
        ({"mm_use_im_start_end": True}, "'mm_use_im_start_end': True"),
        ({"image_aspect_ratio": "anyres_max_9"}, "'anyres_max_9' with mm_patch_merge_type 'flat'"),
        ({**ANYRES}, "has no image_newline, and config.json asks for resolution anyres"),
        ({"mm_projector_type": "mlp3x_gelu"}, "missing: model.mm_projector.4.weight"),
    ],
)
def test_what_our_projector_is_not_is_refused(backbones, tmp_path, changes, message):
    write(tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, vision=str(backbones[0]), text=str(backbones[1]))


def test_a_pickle_is_refused_with_the_way_to_make_safetensors_of_it(tmp_path):
    write(tmp_path)
    (tmp_path / "mm_projector.safetensors").rename(tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match=r"mm_projector.bin is a pickle.*save_file\(.*weights_only=True"):
        convert(tmp_path, vision="v", text="t")


def test_missing_backbones_are_asked_for_by_what_the_config_calls_them(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match=r"vision \(config.json says 'openai/clip.*text \('lmsys/vicuna"):
        convert(tmp_path)
