"""A saved model comes back as it was, with every option of its config; weights that do not fit are an error."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from tests.model.conftest import AVG_POOL, METHODS, NONE, V1, stir
from tests.model.test_modeling import CHATS, batch_of
from tests.tiny import save_encoder, save_language_model
from vision_remember.model import VisionRememberForConditionalGeneration


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_model_loads_to_the_same_logits_through_the_auto_classes(build, processor, tmp_path, method):
    model, batch = stir(build(METHODS[method])), batch_of(processor, CHATS)
    model.save_pretrained(tmp_path)
    assert [path.suffix for path in tmp_path.glob("*model*")] == [".safetensors"]
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(again) is VisionRememberForConditionalGeneration
    assert again.config.to_dict() == AutoConfig.from_pretrained(tmp_path).to_dict()
    assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_options_that_are_changed_while_loading_are_saved_whole(build, tmp_path):
    before = build({"type": "remember", "layers": [1]})
    before.save_pretrained(tmp_path / "before")
    after = type(before).from_pretrained(tmp_path / "before", refusion={"type": "remember", "layers": [1], "focus": 0})
    after.save_pretrained(tmp_path / "after")
    saved = [json.loads((tmp_path / name / "config.json").read_text())["refusion"] for name in ("before", "after")]
    assert saved[1] == {**saved[0], "focus": 0.0}


def test_the_model_without_head_reads_a_whole_checkpoint_and_passes_over_the_head_alone(tmp_path):
    backbones = save_encoder(tmp_path / "clip"), save_language_model(tmp_path / "llama", "llama", tied=False)
    model = VisionRememberForConditionalGeneration.from_backbones(*backbones, projector=AVG_POOL, refusion=V1)
    model.save_pretrained(tmp_path)
    headless, ids = AutoModel.from_pretrained(tmp_path), torch.arange(9)[None]
    assert torch.equal(headless(ids).last_hidden_state, model.model(ids).last_hidden_state)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "lm_head.bias": torch.zeros(3)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    AutoModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"1 unexpected keys in the weights, first lm_head\.bias"):
        VisionRememberForConditionalGeneration.from_pretrained(tmp_path)
    save_file({**weights, "lm_heads": torch.zeros(3)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 unexpected keys in the weights, first lm_heads"):
        AutoModel.from_pretrained(tmp_path)


def test_weights_of_another_architecture_are_refused(build, tmp_path):
    build(NONE).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"type": "none"', '"type": "remember"'))
    with pytest.raises(ValueError, match=r"missing keys in the weights, first .*refusion"):
        VisionRememberForConditionalGeneration.from_pretrained(tmp_path)
