import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CLIPConfig, CLIPModel, CLIPVisionModel, LlamaForCausalLM

from tests.llava import build_pieces
from tests.model.conftest import AVG_POOL, NONE, V1
from tests.tiny import save_encoder, save_language_model
from vision_remember.model import VisionRememberForConditionalGeneration, VisionRememberProcessor

from_backbones = VisionRememberForConditionalGeneration.from_backbones


def test_a_missing_image_token_is_added_with_the_mean_embedding(backbones, build):
    model, language_model = build(NONE), AutoModelForCausalLM.from_pretrained(backbones[1])
    old = language_model.get_input_embeddings().weight
    new = model.get_input_embeddings().weight
    assert model.config.image_token_id == len(old) == model.config.text_config.vocab_size - 1
    assert torch.equal(new[: len(old)], old)
    assert torch.equal(new[-1], old.mean(0))
    assert model.lm_head.weight is new  # tied, as in the backbone


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("num_spare", [0, 5])
def test_without_chatml_in_the_vocabulary_placeholders_are_still_known_by_their_embedding(tmp_path, tied, num_spare):
    tokenizer = build_pieces(is_legacy=True)
    size = len(tokenizer)
    folder = save_language_model(tmp_path, "llama", tied=tied, tokenizer=tokenizer)
    causal_lm = LlamaForCausalLM.from_pretrained(folder)
    causal_lm.resize_token_embeddings(size + num_spare, mean_resizing=False)  # rows that no token has, as in real LMs
    causal_lm.get_input_embeddings().weight.data[size:] = causal_lm.get_output_embeddings().weight.data[size:] = 0
    causal_lm.save_pretrained(folder)
    encoder = save_encoder(tmp_path / "clip")
    model = from_backbones(encoder, folder, projector=AVG_POOL, refusion=V1)
    processor = VisionRememberProcessor.from_backbones(encoder, folder, model.config)
    words = torch.arange(3, 40)[None]
    assert torch.equal(model(words).logits[..., :size], causal_lm(words).logits[..., :size])
    inputs = dict(processor(text="What?", images=[_red()]))
    for dtype in (torch.float32, torch.bfloat16):
        expected = model.to(dtype)(**inputs).logits
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        assert torch.equal(model(**inputs | {"input_ids": None, "inputs_embeds": embeds}).logits, expected)


@pytest.mark.parametrize(("vision", "prefix"), [("clip", 1), ("siglip", 0)])
@pytest.mark.parametrize(("text", "tied"), [("qwen2", False), ("llama", True)])
def test_families_of_encoders_and_language_models_join(tmp_path, vision, prefix, text, tied):
    encoder = save_encoder(tmp_path / "vision", vision)
    language_model = save_language_model(tmp_path / "text", text, tied=tied)
    model = from_backbones(encoder, language_model, projector=AVG_POOL, refusion=V1)
    processor = VisionRememberProcessor.from_backbones(encoder, language_model, model.config)
    assert model.config.num_prefix_tokens == prefix
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    inputs = processor(text="What?", images=processor.canvases([_red()]))
    logits = model(**inputs).logits
    model.save_pretrained(tmp_path / "joined")
    again = VisionRememberForConditionalGeneration.from_pretrained(tmp_path / "joined")
    assert torch.equal(again(**inputs).logits, logits)


def test_encoder_levels_are_the_plain_hidden_states_without_the_class_token(backbones, build):
    model = build(V1)
    pixels = torch.randn(2, 3, 48, 48)
    tower = CLIPVisionModel.from_pretrained(backbones[0])
    states = tower(pixels, output_hidden_states=True).hidden_states
    expected = torch.stack([states[index][:, 1:] for index in model.encoder_level_indices], dim=1)
    assert model.encoder_level_indices == (2, 3)
    assert torch.equal(model.encode(pixels), expected)


def test_the_vision_half_of_a_whole_clip_is_found(tmp_path, backbones):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    vision = {**shape, "image_size": 48, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config={**shape, "vocab_size": 32}, projection_dim=8))
    clip.save_pretrained(tmp_path)
    model = from_backbones(tmp_path, backbones[1], projector=AVG_POOL)
    weight = clip.vision_model.encoder.layers[0].mlp.fc1.weight
    assert torch.equal(model.model.vision_tower.encoder.layers[0].mlp.fc1.weight, weight)


def test_vision_tokens_have_the_usual_size_of_a_text_embedding(backbones, build):
    model = build(NONE)
    sizes = AutoModelForCausalLM.from_pretrained(backbones[1]).get_input_embeddings().weight.pow(2).mean(1).sqrt()
    tokens = torch.cat(model.get_image_features(torch.randn(2, 3, 48, 48)).pooler_output)
    torch.testing.assert_close(tokens.pow(2).mean(1).sqrt(), sizes.median().expand(len(tokens)), rtol=1e-3, atol=0)


def test_one_seed_starts_a_projector_alike_beside_every_refusion_method(backbones):
    none, remember = (
        from_backbones(*backbones, projector=AVG_POOL, refusion=refusion, seed=3) for refusion in (NONE, V1)
    )
    for (name, left), (_, right) in zip(none.parts()["projector"], remember.parts()["projector"], strict=True):
        assert torch.equal(left, right), name
    other = from_backbones(*backbones, projector=AVG_POOL, seed=4)
    assert not torch.equal(other.parts()["projector"][0][1], none.parts()["projector"][0][1])


def test_the_global_random_state_is_left_alone(backbones):
    before = torch.random.get_rng_state()
    from_backbones(*backbones, projector=AVG_POOL, refusion=V1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_missing_weights_of_a_backbone_are_an_error(tmp_path, backbones):
    encoder = save_encoder(tmp_path / "clip")
    weights = load_file(encoder / "model.safetensors")
    lost = next(name for name in weights if name.endswith("layers.2.mlp.fc1.weight"))
    del weights[lost]
    save_file(weights, encoder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights of CLIPVisionModel"):
        from_backbones(encoder, backbones[1])


def test_an_encoder_that_lacks_a_level_is_refused_before_any_weight_is_loaded(tmp_path, backbones):
    encoder = save_encoder(tmp_path / "clip")
    (encoder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="refusion asks for encoder level 7, the encoder has levels -5 to 4"):
        from_backbones(encoder, backbones[1], refusion={"type": "remember", "levels": [7]})
    with pytest.raises(ValueError, match="refusion.layers names 9, the decoder has 4 layers"):
        from_backbones(encoder, backbones[1], refusion={"type": "remember", "layers": [9]})


def _red():
    from PIL import Image

    return Image.new("RGB", (48, 48), (200, 20, 20))
