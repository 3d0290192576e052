import json

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, Qwen2Config, SiglipVisionConfig

from vision_remember.geometry import Grid
from vision_remember.model import VisionRememberConfig
from vision_remember.model.configuration import resolve_levels
from vision_remember.refusion import Backbones

VISION = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 48, "patch_size": 8}
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


def make(vision=None, text=None, **options) -> VisionRememberConfig:
    return VisionRememberConfig(
        vision_config=vision or CLIPVisionConfig(**VISION), text_config=text or Qwen2Config(**TEXT), **options
    )


def test_a_config_survives_a_round_trip_through_json(tmp_path):
    config = make(projector={"type": "avg_pool", "scale": 2}, refusion={"type": "remember", "layers": (0, 2)})
    config.save_pretrained(tmp_path)
    again = VisionRememberConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["refusion"]["layers"] == [0, 2] and saved["projector"] == {
        "type": "avg_pool",
        "level": -2,
        "scale": 2,
        "depth": 2,
    }


def test_a_saved_config_keeps_the_defaults_of_its_time(tmp_path, monkeypatch):
    make(refusion={"type": "remember"}).save_pretrained(tmp_path)
    monkeypatch.setattr(Backbones, "levels_at", lambda self, *parts, of: (1,))
    assert make(refusion={"type": "remember"}).refusion["levels"] == [1], "a default has changed"
    again = VisionRememberConfig.from_pretrained(tmp_path)
    assert again.refusion["levels"] == [2, 3] and again.refusion["memory_width"] == VISION["hidden_size"]


def test_a_config_that_was_saved_with_fewer_options_is_filled_up(tmp_path):
    make(refusion={"type": "remember", "layers": [0]}).save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    short = {**whole, "refusion": {"type": "remember", "layers": [0]}}
    (tmp_path / "config.json").write_text(json.dumps(short))
    assert VisionRememberConfig.from_pretrained(tmp_path).refusion == whole["refusion"]


@pytest.mark.parametrize("vision", [CLIPVisionConfig(**VISION), SiglipVisionConfig(**VISION)])
@pytest.mark.parametrize("text", [Qwen2Config(**TEXT), LlamaConfig(**TEXT)])
def test_any_registered_pair_is_accepted(vision, text):
    config = make(vision, text, projector={"type": "avg_pool", "scale": 3})
    assert (config.patch_grid, config.token_grid) == (Grid(6, 6), Grid(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refusion": {"type": "rember"}}, "did you mean 'remember'"),
        ({"refusion": {"type": "remember", "margn": 1}}, "did you mean 'margin'"),
        ({"refusion": {"type": "remember", "margin": "1"}}, "margin must be int"),
        ({"projector": {"type": "avg_pool", "skale": 2}}, "did you mean 'scale'"),
        ({"projector": {"scale": 2}}, "lack 'type'"),
        ({"projector": "avg_pool"}, "projector must be a dict"),
        ({"projector": {"type": "avg_pool", "level": 7}}, "level 7, the encoder has levels -5 to 4"),
        ({"refusion": {"type": "remember", "levels": [1, 9]}}, "level 9, the encoder has levels -5 to 4"),
        ({"refusion": {"type": "remember", "layers": [0, 4]}}, "names 4, the decoder has 4 layers"),
        ({"image_tokn_id": 3}, "did you mean image_token_id"),
    ],
)
def test_a_wrong_option_is_refused_before_any_weight_exists(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_wrong_option_in_a_saved_config_is_refused(tmp_path):
    make(refusion={"type": "remember"}).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"remember"', '"remembers"'))
    with pytest.raises(ValueError, match="remember"):
        VisionRememberConfig.from_pretrained(tmp_path)


def test_levels_count_from_both_ends():
    assert resolve_levels((-2, 13, 0, 24, -1), 24, "projector") == (23, 13, 0, 24, 24)


@pytest.mark.parametrize("count", [1, 9, 25, 32, 64, 256])
def test_mqt_beside_remember_takes_only_numbers_whose_cells_are_windows(count):
    mqt = {"type": "mqt", "num_queries": 256, "num_tokens": count, "num_heads": 2}
    with pytest.raises(
        ValueError, match=rf"{count} vision tokens without places .* 6x6 patches; make 4, 16, 36 of them"
    ):
        make(projector=mqt, refusion={"type": "remember"})
    make(projector=mqt, refusion={"type": "deepstack"})
    for fitting in (4, 16, 36):
        make(projector={**mqt, "num_tokens": fitting}, refusion={"type": "remember"})
