"""Re-fusion in models of transformers' own classes: identity, the right patches, and every way to generate."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import LlavaForConditionalGeneration

from tests.model.hosts import HOSTS, IMAGE_TOKEN, build_host, prompts
from tests.tiny import save_language_model
from vision_remember import attach
from vision_remember.model import refusion_file

V1 = {"type": "remember", "layers": [-1, 1], "levels": [1, 3], "margin": 1}
OWN_PATCH = {"type": "remember", "layers": [0], "levels": [3], "memory_width": 0}
BIDIRECTIONAL = {"type": "remember", "layers": [0, 2], "bidirectional": True, "margin": 1}
DEEPSTACK = {"type": "deepstack", "layers": [0, 2], "levels": [1, 3], "cell": [1, 1]}
SVA = {"type": "sva", "layers": [0, 1], "width": 16, "num_heads": 2, "positions": 1}
METHODS = {"remember": V1, "deepstack": DEEPSTACK, "sva": SVA, "bidirectional": BIDIRECTIONAL}
PAIRS = [
    (kind, name) for kind in HOSTS for name in METHODS if not (kind.startswith("next") and name == "bidirectional")
]
PAIRS = [pair for pair in PAIRS if pair[1] == "remember" or pair[0] in ("llava", "next")]
every_host = pytest.mark.parametrize("kind", HOSTS)
every_pair = pytest.mark.parametrize(("kind", "method"), PAIRS)
ROWS = [[(40, 50)], [], [(64, 20), (33, 33)], [(100, 31)]]
TOLERANCE = 1e-5  # float32 sums in another order


def attached(kind, method, *, stirred=True):
    model = attach(build_host(kind), refusion=METHODS[method] if isinstance(method, str) else method)
    return stir(model) if stirred else model


def inserted(model):
    places = {"refusion", "refusion_before"}
    return {name: p for name, p in model.named_parameters() if places.intersection(name.split("."))}


def stir(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in inserted(model).values():
            parameter.normal_(std=0.3, generator=generator)
    return model


def greedy(model, inputs, **options):
    options = {
        "suppress_tokens": [IMAGE_TOKEN],  # a model of noise would say it, and then lack an image for it
        "max_new_tokens": 5,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
        **options,
    }
    out = model.generate(**inputs, **options)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)


def assert_same(found, expected):
    assert torch.equal(found[0], expected[0])
    assert (found[1] - expected[1]).abs().max() <= TOLERANCE


@every_pair
def test_a_fresh_method_changes_no_logit_by_one_bit_and_a_trained_one_does(kind, method):
    host = build_host(kind)
    inputs = prompts(host, kind, ROWS)
    with torch.no_grad():
        expected = host(**inputs).logits
        model = attach(host, refusion=METHODS[method])
        assert model is host
        assert torch.equal(model(**inputs).logits, expected)
        changed = stir(model)(**inputs).logits != expected
    assert changed[0].any() and changed[2].any() and changed[3].any()
    assert not changed[1].any(), "the row of text alone"


@every_host
def test_every_token_remembers_the_patch_it_shows_and_newlines_remember_nothing(kind):
    model = attached(kind, OWN_PATCH)
    inner, seen = model.model, []
    inner.language_model.layers[0].refusion.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    inputs = prompts(model, kind, ROWS)
    with torch.no_grad():
        model(**inputs)
        pixels = inputs["pixel_values"].reshape(-1, 3, 32, 32)
        states = inner.vision_tower(pixels, output_hidden_states=True).hidden_states
        layers = inner.config.vision_feature_layer
        features = torch.cat([states[i] for i in ([layers] if isinstance(layers, int) else layers)], dim=-1)
        projected = inner.multi_modal_projector(features)  # [tiles, prefix + P, D]
        tokens = torch.cat(
            list(model.get_image_features(**{k: v for k, v in inputs.items() if "i" in k[:2]}).pooler_output)
        )
    prefix = inner.num_prefix_tokens
    memory = F.layer_norm(states[3][:, prefix:], (16,)).flatten(0, 1)  # [tiles * P, C]
    shown = projected[:, prefix:].flatten(0, 1)
    placeholder = (inputs["input_ids"] == IMAGE_TOKEN).flatten().nonzero().flatten().tolist()
    remembered = dict(zip(seen[0].position.tolist(), seen[0].rows, strict=True))
    assert set(remembered) <= set(placeholder)
    newline = inner.image_newline if kind.startswith("next") else None
    for place, token in zip(placeholder, tokens, strict=True):
        if place not in remembered:
            is_newline = newline is not None and torch.equal(token, newline)
            is_class_token = (projected[:, :prefix] - token).abs().amax(-1).lt(1e-5).any()
            assert is_newline or is_class_token
            continue
        patch = int((memory - remembered[place]).abs().amax(-1).argmin())
        torch.testing.assert_close(memory[patch], remembered[place], rtol=0, atol=1e-4)
        torch.testing.assert_close(shown[patch], token, rtol=0, atol=1e-4)


def test_the_tower_runs_once_for_all_levels():
    model, calls = attached("next", "remember"), []
    inputs = prompts(model, "next", ROWS)
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    model.generate(**inputs, max_new_tokens=3)
    assert len(calls) == 1


@every_pair
def test_the_answer_depends_on_neither_batch_nor_padding_nor_cache(kind, method):
    model = attached(kind, method)
    inputs = prompts(model, kind, ROWS)
    expected = greedy(model, inputs)
    assert_same(greedy(model, prompts(model, kind, ROWS, extra=7)), expected)
    assert_same(greedy(model, inputs, use_cache=False), expected)
    for number in range(len(ROWS)):
        ids = inputs["input_ids"][number][inputs["attention_mask"][number].bool()][None]
        single = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        first = sum(map(len, ROWS[:number]))
        if ROWS[number]:
            own = slice(first, first + len(ROWS[number]))
            single |= {key: inputs[key][own] for key in ("pixel_values", "image_sizes") if key in inputs}
        assert_same(greedy(model, single), tuple(x[number : number + 1] for x in expected))


@every_host
def test_chunks_beams_and_static_caches_give_the_same(kind):
    model = attached(kind, "remember")
    inputs = prompts(model, kind, ROWS)
    expected = greedy(model, inputs)
    assert_same(greedy(model, inputs, prefill_chunk_size=7), expected)
    assert_same(greedy(model, inputs, prefill_chunk_size=1), expected)  # also chunks of nothing but a newline
    assert_same(greedy(model, inputs, cache_implementation="static", disable_compile=True), expected)
    beams = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN]}
    together = model.generate(**inputs, **beams)
    one = prompts(model, kind, ROWS[:1])
    one["pixel_values"] = inputs["pixel_values"][:1]
    alone = model.generate(**one, **beams)
    assert torch.equal(together[0, inputs["input_ids"].shape[1] :], alone[0, one["input_ids"].shape[1] :])


def test_a_chunk_that_cuts_an_image_is_refused_where_the_whole_is_needed():
    model = attached("llava", "bidirectional")
    inputs = prompts(model, "llava", ROWS[:1])
    with pytest.raises(ValueError, match="holds 5 of the 16 vision tokens"):
        model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=7)


@every_pair
def test_the_inserted_parameters_learn_and_the_others_stay(kind, method):
    model = attached(kind, method, stirred=False)
    model.requires_grad_(False)
    for parameter in inserted(model).values():
        parameter.requires_grad_(True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.train()
    model.activation_checkpointing_enable()
    inputs = prompts(model, kind, ROWS, side="right")
    labels = inputs["input_ids"].masked_fill(
        (inputs["attention_mask"] == 0) | (inputs["input_ids"] == IMAGE_TOKEN), -100
    )
    optimizer = torch.optim.Adam(inserted(model).values(), lr=1e-2)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in inserted(model)), name


@pytest.mark.parametrize("kind", ["llava", "next"])
def test_saved_parameters_come_back_into_a_fresh_copy(kind, tmp_path):
    model = attached(kind, "remember")
    inputs = prompts(model, kind, ROWS)
    model.save_refusion(tmp_path / "remember.safetensors")
    again = attach(build_host(kind), refusion=tmp_path / "remember.safetensors")
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert set(inserted(again)) == {name for name in again.state_dict() if "refusion" in name}
    options, _ = refusion_file.read(tmp_path / "remember.safetensors")
    assert options["memory_width"] == model.config.vision_config.hidden_size, "the default of its time"


def test_files_of_other_models_are_refused(tmp_path):
    file = tmp_path / "remember.safetensors"
    attached("llava", V1).save_refusion(file)
    with pytest.raises(ValueError, match="neither a LLaVA nor a LLaVA-NeXT"):
        attach(build_host("llava").model, refusion=file)
    with pytest.raises(ValueError, match="no file .*nowhere"):
        attach(build_host("llava"), refusion=tmp_path / "nowhere")
    config = copy.deepcopy(build_host("llava").config)
    config.text_config.intermediate_size, config.text_config.hidden_size = 64, 32
    with pytest.raises(ValueError, match="has shape .* in the file and .* in the model"):
        attach(LlavaForConditionalGeneration(config), refusion=file)
    from safetensors.torch import load_file, save_file

    save_file(load_file(file), tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="holds no options"):
        attach(build_host("llava"), refusion=tmp_path / "plain.safetensors")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "next",
            BIDIRECTIONAL,
            "remember cannot be attached to a LlavaNext.*attends over whole images.*bidirectional: false",
        ),
        ("llava", {**BIDIRECTIONAL, "guidance": True}, "reads the user's turn.*guidance: false"),
        ("llava", {"type": "fastv"}, "fastv cannot be attached to a LlavaForConditionalGeneration: it drops tokens"),
        ("llava", {"type": "deepstack_hd", "layers": [0, 1, 2, 3]}, "reads enlarged views"),
        ("llava", {"type": "none"}, "puts nothing between the layers"),
        ("llava", {**V1, "levels": [9]}, "refusion asks for encoder level 9, the encoder has levels -5 to 4"),
        ("llava", {**V1, "layers": [4]}, "re-fusion after layer 4 of LlamaModel with 4 layers"),
        ("llava", {**V1, "marign": 1}, "has no option 'marign'; did you mean 'margin'"),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_the_model_as_it_was(kind, options, message):
    model = build_host(kind)
    names, layer = list(model.state_dict()), type(model.model.language_model.layers[0])
    with pytest.raises(ValueError, match=message):
        attach(model, refusion=options)
    assert list(model.state_dict()) == names and type(model.model.language_model.layers[0]) is layer
    attach(model, refusion=OWN_PATCH)
    with pytest.raises(ValueError, match="already has a re-fusion method"):
        attach(model, refusion=OWN_PATCH)


def test_a_model_in_half_precision_stays_in_it():
    model = attach(build_host("next").to(torch.bfloat16), refusion=V1)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    inputs = prompts(model, "next", ROWS)
    assert stir(model).generate(**inputs, max_new_tokens=2).shape[0] == len(ROWS)


def test_the_whole_model_saves_under_its_own_name_and_loads_without_us(tmp_path):
    model = attached("llava", "remember", stirred=False)
    inputs = prompts(model, "llava", ROWS)
    model.save_pretrained(tmp_path)
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(plain(**inputs).logits, model(**inputs).logits)


def test_a_model_that_accelerate_has_spread_is_refused_before_and_welcome_after():
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    spread = build_host("llava")
    add_hook_to_module(spread.model.language_model.layers[1], AlignDevicesHook(execution_device="cpu"))
    with pytest.raises(ValueError, match="1 modules .model.language_model.layers.1 first. have hooks of accelerate"):
        attach(spread, refusion=V1)
    model = attached("llava", V1)
    inputs = prompts(model, "llava", ROWS)
    expected = model(**inputs).logits
    add_hook_to_module(model.model.language_model.layers[1], AlignDevicesHook(execution_device="cpu"))
    assert torch.equal(model(**inputs).logits, expected)


def test_the_random_state_of_the_caller_is_left_alone():
    model, before = build_host("llava"), torch.random.get_rng_state()
    attach(model, refusion=V1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_wrong_counts_are_an_error_with_both_numbers():
    model = attached("llava", "remember")
    inputs = prompts(model, "llava", ROWS[:1])
    inputs["input_ids"][0, 4] = 5
    with pytest.raises((ValueError, RuntimeError), match="tokens: 15, features"):
        model(**inputs)


def test_a_language_model_alone_is_refused(tmp_path):
    from transformers import AutoModelForCausalLM

    language_model = AutoModelForCausalLM.from_pretrained(save_language_model(tmp_path))
    with pytest.raises(ValueError, match="Qwen2ForCausalLM is neither"):
        attach(language_model, refusion=V1)
