"""Re-fusion between the layers of real decoder classes: identity, checkpointing, caches, names, recording."""

import copy
import dataclasses

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomModel,
    CLIPVisionConfig,
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.refusion.scene import BACKBONES, T, build, hidden_states, state_of, vision_mask, wake
from vision_remember.refusion import Backbones
from vision_remember.refusion.attach import attach

V2 = {"bidirectional": True, "guidance": True}
LAYERS = (-1, 0, 2)
FAMILIES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
    ),  # layers of two kinds, each with a mask and rotary embeddings of its own
    "granite": (GraniteConfig, GraniteForCausalLM),  # scaled residuals
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),  # norms after the branches
    "phi": (PhiConfig, PhiForCausalLM),  # attention and feed-forward side by side
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def language_model(family="qwen2", **options):
    config_class, model_class = FAMILIES[family]
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = config_class(vocab_size=32, num_key_value_heads=2, head_dim=4, **shape, **options)
    return model_class(config).eval()


def remembering(family="qwen2", **options):
    """A decoder with a remember that already does something, and the state of the mixed batch."""
    model, refusion = language_model(family), build("remember", **{"layers": LAYERS, **options})
    attach(model, refusion)
    for name, module in model.named_modules():
        if name.endswith((".refusion", ".refusion_before")):
            wake(module)
    return model, state_of(refusion)


def logits(model, **inputs):
    with torch.no_grad():
        return model(inputs_embeds=hidden_states(), use_cache=False, **inputs).logits


@every_family
@pytest.mark.parametrize("options", [{"name": "none"}, {"name": "remember"}, {"name": "remember", **V2}], ids=str)
def test_a_fresh_method_changes_no_logit_by_one_bit(family, options):
    before = logits(language_model(family))
    model, refusion = language_model(family), build(**options)
    attach(model, refusion)
    inputs = {"refusion": state_of(refusion)} if refusion.layers else {}
    assert torch.equal(logits(model), before)
    assert torch.equal(logits(model, **inputs), before)
    model.train()
    model.activation_checkpointing_enable()
    assert torch.equal(model(inputs_embeds=hidden_states(), use_cache=False, **inputs).logits, before)


@every_family
def test_a_trained_module_changes_the_rows_with_images_and_no_other(family):
    model, state = remembering(family, **V2)
    with_memory, without = logits(model, refusion=state), logits(model)
    assert torch.equal(with_memory[1], without[1]), "the text-only row"
    assert not torch.equal(with_memory[0], without[0]) and not torch.equal(with_memory[2], without[2])


@every_family
def test_activation_checkpointing_recomputes_once_and_gives_equal_gradients(family):
    gradients, calls = {}, []
    for checkpointing in (False, True):
        model, state = remembering(family, **V2)
        rows = state.rows.clone().requires_grad_()
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model.model.layers[2].refusion.register_forward_pre_hook(lambda *_: calls.append(1))
        calls.clear()
        model(
            inputs_embeds=hidden_states(), refusion=dataclasses.replace(state, rows=rows), use_cache=False
        ).logits.square().sum().backward()
        assert len(calls) == (2 if checkpointing else 1)
        gradients[checkpointing] = {"rows": rows.grad, **{name: p.grad for name, p in model.named_parameters()}}
    for name, gradient in gradients[False].items():
        if gradient is not None:
            assert torch.equal(gradient, gradients[True][name]), name


@every_family
def test_parameters_of_the_base_model_keep_their_names_and_values(family):
    base, (model, _) = language_model(family), remembering(family)
    named = dict(model.named_parameters())
    for name, parameter in base.named_parameters():
        assert torch.equal(named.pop(name), parameter)
    places = {name.split(".cross_attention")[0].split(".ffn")[0] for name in named}
    assert places == {"model.layers.0.refusion_before", "model.layers.0.refusion", "model.layers.2.refusion"}


@every_family
def test_every_inserted_parameter_learns_by_the_second_step(family):
    model, refusion = language_model(family), build("remember", layers=LAYERS, **V2)
    attach(model, refusion)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(
            inputs_embeds=hidden_states(), refusion=state_of(refusion), use_cache=False
        ).logits.square().sum().backward()
        optimizer.step()
    inserted = {name: parameter for name, parameter in model.named_parameters() if ".refusion" in name}
    assert len(inserted) > 30
    for name, parameter in inserted.items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@every_family
def test_prefill_then_decode_equals_the_whole_sequence(family):
    model, state = remembering(family)
    whole, hidden, cache, parts = logits(model, refusion=state), hidden_states(), DynamicCache(), []
    cut = 17  # all images end before
    flat = state.position // T * cut + state.position % T
    with torch.no_grad():
        prefill = dataclasses.replace(state, position=flat, guidance=None)
        parts.append(
            model(inputs_embeds=hidden[:, :cut], past_key_values=cache, use_cache=True, refusion=prefill).logits
        )
        for place in range(cut, T):
            parts.append(
                model(inputs_embeds=hidden[:, place : place + 1], past_key_values=cache, use_cache=True).logits
            )
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)


@every_family
def test_recorded_hidden_states_are_those_after_re_fusion(family):
    model, state = remembering(family)
    with torch.no_grad():
        with_memory = model(inputs_embeds=hidden_states(), refusion=state, use_cache=False, output_hidden_states=True)
        without = model(inputs_embeds=hidden_states(), use_cache=False, output_hidden_states=True)
    changed = (with_memory.hidden_states[1] != without.hidden_states[1]).any(-1)
    assert len(with_memory.hidden_states) == BACKBONES.decoder_layers + 1
    assert changed[vision_mask()].all() and not changed[1].any()


def test_the_graph_is_whole_under_dynamo():
    model, state = remembering(**V2)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(logits(compiled, refusion=state), logits(model, refusion=state))


def test_layers_without_an_insertion_pass_nothing_unknown_to_their_attention():
    model, state = remembering(layers=(1,))
    seen = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append("refusion" in kwargs), with_kwargs=True
        )
    logits(model, refusion=state)
    assert seen == [False] * BACKBONES.decoder_layers


def test_attention_weights_come_back_per_layer():
    model, state = remembering()
    state = dataclasses.replace(state, attentions={})
    logits(model, refusion=state)
    assert sorted(state.attentions) == list(LAYERS)


def test_saved_weights_load_into_a_fresh_attachment():
    model, state = remembering()
    other = language_model()
    attach(other, build("remember", layers=LAYERS))
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(logits(other, refusion=state), logits(model, refusion=state))
    assert torch.equal(logits(copy.deepcopy(model), refusion=state), logits(model, refusion=state))


def test_layer_classes_keep_their_name_and_are_made_once():
    plain, (first, _), (second, _) = language_model(), remembering(), remembering()
    base, attached = type(plain.model.layers[0]), type(first.model.layers[0])
    assert attached.__name__ == base.__name__ and issubclass(attached, base) and attached is not base
    assert type(second.model.layers[1]) is attached
    assert type(plain.model.layers[0]) is base, "models without re-fusion are not touched"


def test_the_shapes_of_the_backbones_are_read_from_their_configs():
    encoder = CLIPVisionConfig(hidden_size=48, num_hidden_layers=5)
    shapes = Backbones.from_configs(encoder, language_model().config)
    assert shapes == dataclasses.replace(BACKBONES, feature_width=48, encoder_layers=5)
    wide = Backbones.from_configs(encoder, Qwen3Config(hidden_size=16, num_attention_heads=4, head_dim=32))
    assert wide.head_width == 32, "not every LLM divides its width by its heads"


@pytest.mark.parametrize(
    ("layers", "message"),
    [((4,), "after layer 4 of Qwen2Model with 4 layers.* to 3"), ((-2, 0), "after layer -2"), ((1, 1), "distinct")],
)
def test_layers_that_the_decoder_lacks_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        attach(language_model(), build("remember", layers=layers))


def test_attaching_twice_is_refused():
    model, _ = remembering()
    with pytest.raises(ValueError, match="already has a re-fusion"):
        attach(model, build("remember"))


def test_a_decoder_that_drops_keywords_is_refused():
    model = BloomModel(BloomConfig(vocab_size=32, hidden_size=16, n_layer=2, n_head=2))
    with pytest.raises(ValueError, match="BloomModel.*use another LLM"):
        attach(model, build("remember", layers=(0,)))
