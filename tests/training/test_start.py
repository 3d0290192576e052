import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vision_remember.training import load_recipe, train
from vision_remember.training.start import build_model, check_rates, freeze


def start_from(recipe_file, weights):
    return build_model(load_recipe(recipe_file, [f"model.projector_weights={weights}"]))[0].model.multi_modal_projector


@pytest.fixture
def weights(tmp_path, recipe_file):
    projector = build_model(load_recipe(recipe_file))[0].model.multi_modal_projector
    values = {name: torch.full_like(value, 0.5) for name, value in projector.state_dict().items()}
    save_file(values, tmp_path / "model.safetensors")
    return tmp_path


def test_a_projector_starts_from_the_weights_it_is_given(recipe_file, weights):
    assert all((value == 0.5).all() for value in start_from(recipe_file, weights).state_dict().values())


def test_weights_of_another_projector_are_refused(recipe_file, weights):
    save_file({"0.weight": torch.zeros(2, 2)}, weights / "model.safetensors")
    with pytest.raises(ValueError, match="projector_weights .* does not fit"):
        start_from(recipe_file, weights)


def test_a_folder_without_weights_is_refused(recipe_file, tmp_path):
    with pytest.raises(ValueError, match="projector_weights"):
        start_from(recipe_file, tmp_path / "nothing")


def test_a_name_that_is_not_in_the_package_is_refused(recipe_file):
    with pytest.raises(ValueError, match="embedded/nothing is not in the package"):
        load_recipe(recipe_file, ["model.projector_weights=embedded/nothing"])


@pytest.mark.parametrize("way", ["eager", "sdpa"])
def test_attention_is_computed_the_way_the_recipe_says(recipe_file, way):
    model, _ = build_model(load_recipe(recipe_file, [f"model.attn_implementation={way}"]))
    parts = model.model.language_model, model.model.vision_tower
    assert [part.config._attn_implementation for part in parts] == [way, way]


def test_a_way_of_attention_that_is_not_installed_is_refused(recipe_file):
    with pytest.raises(ValueError, match="model.attn_implementation flash_attention_2: .*"):
        build_model(load_recipe(recipe_file, ["model.attn_implementation=flash_attention_2"]))


def test_a_start_model_without_re_fusion_gets_a_fresh_one_and_says_the_same(recipe_file, tmp_path):
    plain = ["model.refusion={type: none}"]
    before, processor = build_model(load_recipe(recipe_file, plain))
    before.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    after, _ = build_model(load_recipe(recipe_file, [f"model.checkpoint={tmp_path / 'start'}"]))
    assert after.config.refusion["type"] == "remember" and after.parts()["refusion"]
    after.save_pretrained(tmp_path / "after")
    stops = [json.loads((tmp_path / name / "generation_config.json").read_text()) for name in ("start", "after")]
    assert stops[0] == stops[1] and {"eos_token_id", "suppress_tokens"} <= stops[0].keys()
    inputs = processor(text=[processor.image_token], images=[Image.new("RGB", (48, 48), "red")], return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(before(**inputs).logits, after(**inputs).logits)


def test_a_start_model_with_another_re_fusion_is_refused(recipe_file, tmp_path):
    model, processor = build_model(load_recipe(recipe_file))
    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    start = f"model.checkpoint={tmp_path / 'start'}"
    others = ("{type: none}", "{type: sva, layers: [99]}", "{type: remember, layers: [0], margin: 1}")
    for refusion in others:
        with pytest.raises(ValueError, match="has refusion {'type': 'remember', .*make them agree"):
            build_model(load_recipe(recipe_file, [start, f"model.refusion={refusion}"]))
    default = f"{{type: remember, layers: [0], margin: 0, memory_width: {model.config.vision_config.hidden_size}}}"
    build_model(load_recipe(recipe_file, [start, f"model.refusion={default}"]))


def test_a_model_of_any_resolution_is_trained_and_its_checkpoint_keeps_the_setting(recipe_file, tmp_path):
    anyres = ["model.resolution={mode: anyres}", "training.steps=2", "training.save_every=0"]
    folder = train(load_recipe(recipe_file, anyres), output_dir=tmp_path / "run")
    model, processor = build_model(load_recipe(recipe_file, [f"model.checkpoint={folder}"]))
    assert model.config.resolution == {"mode": "anyres"} and processor.tiling.is_anyres
    assert model.model.image_newline is not None
    before, _ = build_model(load_recipe(recipe_file, anyres))
    assert not torch.equal(model.model.image_newline, before.model.image_newline), (
        "the newline learns with the projector"
    )
    with pytest.raises(ValueError, match="has resolution {'mode': 'anyres'}, the recipe says {'mode': 'resize'}"):
        build_model(load_recipe(recipe_file, [f"model.checkpoint={folder}", "model.resolution={mode: resize}"]))


def test_a_misspelt_resolution_is_refused_before_any_weight_is_loaded(recipe_file):
    with pytest.raises(ValueError, match="resolution has no option 'modes'; did you mean 'mode'"):
        load_recipe(recipe_file, ["model.resolution={modes: anyres}"])


def test_rates_that_cannot_be_made_are_refused_before_the_first_step(make_recipe):
    model, _ = build_model(make_recipe())
    check_rates(model, [36, 9, 4, 1])
    with pytest.raises(ValueError, match=r"training.tokens_per_image names 49: .*7x7 tokens of a 6x6 grid"):
        check_rates(model, [4, 49])


def test_frozen_names_are_taken_at_their_word(make_recipe):
    recipe = make_recipe("training.frozen=[model.multi_modal_projector]")
    model, _ = build_model(recipe)
    assert freeze(model, recipe.training)["projector"]["trainable"] == 0
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        name for name, _ in model.parts()["refusion"]
    }
    with pytest.raises(ValueError, match=r"'model\.multi_modal_projectr'.*did you mean model\.multi_modal_projector"):
        freeze(model, make_recipe("training.frozen=[model.multi_modal_projectr]").training)
    with pytest.raises(ValueError, match="matches no parameter that learns"):
        freeze(model, make_recipe("training.frozen=[lm_head]").training)


def test_refusion_may_be_named_where_the_method_has_no_parameters(make_recipe):
    recipe = make_recipe("model.refusion={type: none}")
    model, _ = build_model(recipe)
    assert freeze(model, recipe.training)["refusion"] == {"total": 0, "trainable": 0}
