import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CohereConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.model.families import LANGUAGE_MODELS, language_model
from tests.tiny import build_tokenizer, save_encoder
from vision_remember.model import VisionRememberForConditionalGeneration
from vision_remember.model.causal_lm import LogitRule, check_causal_lm

TINY = {"vocab_size": 310, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_promised_families_pass_and_finish_their_logits_as_their_class_does(family):
    model = language_model(family, tied=False)
    check_causal_lm(model.config)
    rule, head = LogitRule(model.config), model.get_output_embeddings()
    assert rule.has_bias == (head.bias is not None)
    ids = torch.arange(12)[None]
    hidden = model.get_decoder()(ids, use_cache=False).last_hidden_state
    assert torch.equal(rule(head(hidden)), model(ids).logits)
    bends = not torch.equal(rule(head(hidden)), head(hidden))
    assert bends == (family in ("gemma2", "granite"))


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("bloom", "bloom passes no keywords down"),
        ("falcon", "falcon passes no keywords down"),
        ("gptj", "gptj passes no keywords down"),
        ("mpt", "mpt passes no keywords down"),
        ("stablelm", "stablelm passes no keywords down"),
        ("mamba", "mamba has layers with a recurrent state"),
        ("jamba", "jamba has layers with a recurrent state"),
        ("qwen3_next", "qwen3_next has layers with a recurrent state"),
        ("recurrent_gemma", "recurrent_gemma has layers with a recurrent state"),
        ("gemma3n_text", "gemma3n_text keeps several streams"),
        ("gpt2", "gpt2 keeps no list of decoder layers"),
        ("bert", "bert keeps no list of decoder layers"),
        ("opt", "opt does not run on embeddings alone"),
        ("clip", "clip is no causal LM"),
    ],
)
def test_other_language_models_are_refused_by_name_with_the_reason(family, message):
    with pytest.raises(ValueError, match=message):
        check_causal_lm(CONFIG_MAPPING[family]())


def test_a_refused_language_model_is_refused_before_any_weight_is_loaded(tmp_path):
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="gpt2 keeps no list"):
        VisionRememberForConditionalGeneration.from_backbones(save_encoder(tmp_path / "clip"), tmp_path / "gpt2")


class ScalingConfig(LlamaConfig):
    model_type = "scaling_llama"


class Scaling(LlamaForCausalLM):
    """A family nobody named: it halves what its head reads, as MiniCPM does, and doubles what the head says."""

    config_class = ScalingConfig

    def forward(self, input_ids=None, inputs_embeds=None, use_cache=None, **kwargs):
        outputs = self.model(input_ids=input_ids, inputs_embeds=inputs_embeds, use_cache=use_cache, **kwargs)
        logits = 4 * self.lm_head(outputs.last_hidden_state / 2)
        return CausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)


class BendingConfig(LlamaConfig):
    model_type = "bending_llama"


class Bending(Scaling):
    """Does what no rule for finished logits can: it bends what its head reads."""

    config_class = BendingConfig

    def forward(self, input_ids=None, inputs_embeds=None, use_cache=None, **kwargs):
        outputs = self.model(input_ids=input_ids, inputs_embeds=inputs_embeds, use_cache=use_cache, **kwargs)
        return CausalLMOutputWithPast(logits=self.lm_head(outputs.last_hidden_state.tanh()))


class WeighingConfig(LlamaConfig):
    model_type = "weighing_llama"


class Weighing(Scaling):
    config_class = WeighingConfig

    def __init__(self, config):
        super().__init__(config)
        self.temperature = nn.Parameter(torch.ones(1))


for made in (Scaling, Bending, Weighing):
    AutoConfig.register(made.config_class.model_type, made.config_class)
    AutoModelForCausalLM.register(made.config_class, made)
    AutoModel.register(made.config_class, type("Decoder", (LlamaModel,), {"config_class": made.config_class}))


def save(folder, model_class):
    model_class(model_class.config_class(**TINY, initializer_range=0.2)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def test_a_family_that_nobody_named_joins_when_its_own_code_says_how(tmp_path):
    folder = save(tmp_path / "lm", Scaling)
    model = VisionRememberForConditionalGeneration.from_backbones(save_encoder(tmp_path / "clip"), folder)
    ids = torch.arange(9)[None]
    expected = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    torch.testing.assert_close(model(ids).logits[..., :310], expected, rtol=1e-5, atol=1e-5)


def test_a_family_that_does_more_than_its_logits_show_is_refused(tmp_path):
    encoder = save_encoder(tmp_path / "clip")
    with pytest.raises(ValueError, match="Bending computes its logits differently"):
        VisionRememberForConditionalGeneration.from_backbones(encoder, save(tmp_path / "bending", Bending))
    with pytest.raises(ValueError, match="Weighing has weights beside its decoder and head .temperature"):
        VisionRememberForConditionalGeneration.from_backbones(encoder, save(tmp_path / "weighing", Weighing))


def test_cohere_scales_its_logits_by_its_own_code():
    config = CohereConfig(**TINY, logit_scale=0.25, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    logits = torch.randn(1, 3, 310)
    assert torch.equal(LogitRule(config)(logits), logits * 0.25)


def test_the_rule_lets_gradients_through_and_copies_with_its_model():
    import copy

    rule = copy.deepcopy(LogitRule(language_model("gemma2", tied=True).config))
    logits = torch.randn(1, 3, 305, requires_grad=True)
    rule(logits).sum().backward()
    torch.testing.assert_close(logits.grad, 1 - (logits.detach() / 3).tanh() ** 2)


def test_a_vision_config_is_no_language_model():
    with pytest.raises(ValueError, match="clip_vision_model is no causal LM"):
        check_causal_lm(CLIPVisionConfig())
