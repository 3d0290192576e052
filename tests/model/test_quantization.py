"""A quantised model keeps its re-fusion, its projector and its head in the dtype it was asked for."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, GPTQConfig, QuantoConfig, TorchAoConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from tests.model.conftest import METHODS, MIXED, NONE, V1, V2, stir
from tests.model.test_generation_ways import PROMPT
from vision_remember.model.quantization import SPARED, sparing_our_modules


def spared(name: str) -> bool:
    return name == "lm_head" or not {"refusion", "refusion_before", "multi_modal_projector"}.isdisjoint(name.split("."))


@pytest.mark.parametrize("method", METHODS)
def test_the_skip_list_names_exactly_what_is_ours(build, method):
    """As `transformers` itself reads the list, for every linear layer of the model."""
    skipped = sparing_our_modules(BitsAndBytesConfig(load_in_8bit=True)).llm_int8_skip_modules
    linears = [name for name, module in build(METHODS[method]).named_modules() if isinstance(module, nn.Linear)]
    converted = {name for name in linears if should_convert_module(name, skipped)}
    assert converted == {name for name in linears if not spared(name)}
    assert any("language_model" in name for name in converted) and any("vision_tower" in name for name in converted)


def test_a_list_of_ones_own_is_kept_and_the_config_given_stays_as_it_was():
    given = QuantoConfig(weights="int8", modules_to_not_convert=["lm_head", "vision_tower"])
    before = copy.deepcopy(given.to_dict())
    assert sparing_our_modules(given).modules_to_not_convert == ["lm_head", "vision_tower", *SPARED]
    assert given.to_dict() == before
    for spelt in ({"load_in_4bit": True}, {"quant_method": "bitsandbytes"}):
        assert sparing_our_modules(spelt)["llm_int8_skip_modules"] == ["lm_head", *SPARED]
    again = sparing_our_modules(sparing_our_modules({"quant_method": "torchao"}))
    assert again["modules_to_not_convert"] == ["lm_head", *SPARED]


def test_a_method_that_cannot_spare_modules_is_refused(build, tmp_path):
    build(V1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="GPTQConfig cannot be told to leave the re-fusion and the projector alone"):
        AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=GPTQConfig(bits=4))


def torchao_config():
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def quanto_config():
    pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    return QuantoConfig(weights="int8")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [torchao_config, quanto_config])
@pytest.mark.parametrize("method", [NONE, V2])
def test_a_model_loads_quantised_and_answers(build, processor, tmp_path, method, config, dtype):
    model, quantization_config = stir(build(method)), config()
    model.save_pretrained(tmp_path / "whole")
    loaded = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "whole", quantization_config=quantization_config, dtype=dtype
    )
    for name, module in loaded.named_modules():
        if isinstance(module, nn.Linear):
            is_plain = type(module) is nn.Linear and type(module.weight) is nn.Parameter
            assert is_plain == spared(name), name
            assert not is_plain or module.weight.dtype is dtype
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    mask = inputs["attention_mask"].bool()
    found, expected = loaded(**inputs).logits[mask].float(), model(**inputs).logits[mask]
    # Eight bits a weight, four random layers: about a tenth of the logits' own spread.
    assert (found - expected).square().mean().sqrt() <= 0.1 * expected.std()
    assert loaded.generate(**inputs, max_new_tokens=2).shape[0] == len(MIXED)
    if config is torchao_config:  # quanto writes no files
        loaded.save_pretrained(tmp_path / "small")
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / "small")
        assert torch.equal(again(**inputs).logits, loaded(**inputs).logits)
