"""Every family of encoders with every family of language models, and what design.md promises, for each language model."""

import copy

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from tests.model.conftest import AVG_POOL, NONE, V1, V2, answered, ask, page, stir
from tests.model.families import ENCODERS, LANGUAGE_MODELS, WINDOW, save_encoder, save_language_model
from tests.model.test_generation import PROMPT, assert_same, greedy
from vision_remember.model import VisionRememberForConditionalGeneration, VisionRememberProcessor

FEW = {"max_new_tokens": 4}
BATCH = [
    ask("What is the total?", page(1)),
    ask("Hello"),
    [*answered("Name?", "Anna", page(4)), *ask("Compare these two pages.", page(2), page(3))],
    ask("", page(8)),
]
# Every family once, heads tied and untied by turns; the other pairs are slow.
COVERING = [
    (list(ENCODERS)[number % len(ENCODERS)], family, number % 2 == 0) for number, family in enumerate(LANGUAGE_MODELS)
]
REST = [
    pytest.param(vision, text, tied, marks=pytest.mark.slow)
    for vision in ENCODERS
    for text in LANGUAGE_MODELS
    for tied in (True, False)
    if (vision, text, tied) not in COVERING
]
every_language_model = pytest.mark.parametrize("family", LANGUAGE_MODELS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A factory of folders with backbones, each made once."""
    root, made = tmp_path_factory.mktemp("families"), {}

    def folder(kind, family, tied=True):
        key = (kind, family, tied)
        if key not in made:
            path = root / "-".join(map(str, key))
            made[key] = save_encoder(path, family) if kind == "vision" else save_language_model(path, family, tied=tied)
        return made[key]

    return folder


@pytest.fixture(scope="module")
def joined(folders):
    """A factory of a model with CLIP, its processor, and the language model it was made of; every call gives fresh copies."""
    made = {}

    def join(family, refusion):
        key = (family, str(refusion))
        if key not in made:
            backbones = folders("vision", "clip"), folders("text", family)
            model = VisionRememberForConditionalGeneration.from_backbones(
                *backbones, projector=AVG_POOL, refusion=refusion
            )
            made[key] = model, VisionRememberProcessor.from_backbones(*backbones, model.config)
        model, processor = made[key]
        return copy.deepcopy(model), processor

    return join


@pytest.mark.parametrize(("vision", "text", "tied"), [*COVERING, *REST])
def test_every_pair_trains_generates_saves_and_comes_back(folders, tmp_path, vision, text, tied):
    backbones = folders("vision", vision), folders("text", text, tied)
    model = VisionRememberForConditionalGeneration.from_backbones(*backbones, projector=AVG_POOL, refusion=V1)
    processor = VisionRememberProcessor.from_backbones(*backbones, model.config)
    assert model.config.num_prefix_tokens == ENCODERS[vision][1]
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied

    encodings = [processor.encode(chat) for chat in (answered("What is it?", "42", page(1)), answered("Hello", "Hi"))]
    batch = processor.pad(encodings, side="right")
    model.model.vision_tower.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(2):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    untouched = [
        name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not untouched

    inputs = processor.apply_chat_template(BATCH, **PROMPT)
    tokens, _ = greedy(model, inputs, **FEW)
    model.save_pretrained(tmp_path)
    again = VisionRememberForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(greedy(again, inputs, **FEW)[0], tokens)


@pytest.mark.parametrize("family", ENCODERS)
def test_a_patch_of_the_image_is_the_row_of_its_cell(folders, family):
    """Before its first layer an encoder knows nothing but the patch itself, so a change there shows in one row alone."""
    text = folders("text", "qwen2")
    model = VisionRememberForConditionalGeneration.from_backbones(
        folders("vision", family), text, refusion={"type": "remember", "levels": [0, 3], "layers": [0]}
    )
    pixels = torch.randn(1, 3, 48, 48)
    changed = pixels.clone()
    row, column = 2, 4
    changed[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1
    before, after = (model.encode(x)[0, 0] for x in (pixels, changed))
    assert model.encoder_level_indices[0] == 0
    assert (before != after).any(-1).nonzero().flatten().tolist() == [row * 6 + column]


@pytest.mark.parametrize("family", ENCODERS)
def test_pixels_are_the_whole_canvas_in_the_encoders_own_units(folders, tmp_path, family):
    backbones = folders("vision", family), folders("text", "qwen2")
    model = VisionRememberForConditionalGeneration.from_backbones(*backbones)
    made = VisionRememberProcessor.from_backbones(*backbones, model.config)
    made.save_pretrained(tmp_path)
    for processor in (made, VisionRememberProcessor.from_pretrained(tmp_path)):
        canvas = processor.canvases([page(1)])[0]
        plain = torch.tensor(list(canvas.getdata())).view(48, 48, 3).permute(2, 0, 1) / 255
        mean, std = (
            torch.tensor(x)[:, None, None]
            for x in (processor.image_processor.image_mean, processor.image_processor.image_std)
        )
        torch.testing.assert_close(processor.pixels([page(1)])[0], (plain - mean) / std)
    assert family != "dinov3" or list(processor.image_processor.image_mean) == [0.4, 0.5, 0.6]


@every_language_model
def test_a_fresh_model_says_what_its_language_model_says_bit_for_bit(folders, joined, family):
    language_model = AutoModelForCausalLM.from_pretrained(folders("text", family)).eval()
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(2, 17, 32, generator=generator)
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[1, :5] = 0
    expected = language_model(inputs_embeds=embeds, attention_mask=mask).logits
    for refusion in (NONE, V1, V2):
        model, _ = joined(family, refusion)
        found = model(inputs_embeds=embeds, attention_mask=mask).logits
        assert torch.equal(found[..., : expected.shape[-1]], expected)


@every_language_model
def test_a_fresh_remember_changes_no_logit_of_a_prompt_with_images(joined, family):
    (none, processor), (fresh, _) = joined(family, NONE), joined(family, V2)
    inputs = processor.apply_chat_template(BATCH, **PROMPT)
    assert torch.equal(fresh(**inputs).logits, none(**inputs).logits)
    assert not torch.equal(stir(fresh)(**inputs).logits, none(**inputs).logits)


@every_language_model
def test_the_answer_depends_on_neither_batch_nor_padding_nor_cache_nor_chunks(joined, family):
    model, processor = joined(family, V2)
    stir(model)
    inputs = processor.apply_chat_template(BATCH, **PROMPT)
    assert (inputs["attention_mask"].sum(1) > WINDOW).sum() >= 3, "the prompts fit into a sliding window"
    expected = greedy(model, inputs, **FEW)
    for row, messages in enumerate(BATCH):
        single = greedy(model, processor.apply_chat_template(messages, **PROMPT), **FEW)
        assert_same((expected[0][row : row + 1], expected[1][row : row + 1]), single)
    assert_same(greedy(model, inputs, **FEW, use_cache=False), expected)
    assert_same(greedy(model, inputs, **FEW, cache_implementation="static", disable_compile=True), expected)

    padded = dict(inputs)
    padded["input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (9, 0), value=processor.tokenizer.pad_token_id)
    padded["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (9, 0))
    assert_same(greedy(model, padded, **FEW), expected)

    local, _ = joined(family, V1)
    stir(local)
    whole = greedy(local, inputs, **FEW)
    assert_same(greedy(local, inputs, **FEW, prefill_chunk_size=5), whole)


@every_language_model
def test_right_padding_changes_no_taught_logit(joined, family):
    model, processor = joined(family, V2)
    stir(model)
    encodings = [processor.encode(chat) for chat in (answered("Which?", "42 euros", page(1)), answered("Hi", "Ho"))]
    together = processor.pad(encodings, side="right")
    together.pop("labels")
    logits = model(**together).logits
    for row, encoding in enumerate(encodings):
        single = processor.pad([encoding], side="right")
        single.pop("labels")
        alone = model(**single).logits[0]
        assert (logits[row, : len(alone)] - alone).abs().max() <= 1e-5  # float32 sums in another order


@every_language_model
def test_beams_keep_rows_apart(joined, family):
    model, processor = joined(family, V1)
    stir(model)
    beams = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False}
    inputs = processor.apply_chat_template(BATCH[:3], **PROMPT)
    together = model.generate(**inputs, **beams)[:, inputs["input_ids"].shape[1] :]
    for row in range(3):
        single = processor.apply_chat_template(BATCH[row], **PROMPT)
        alone = model.generate(**single, **beams)[0, single["input_ids"].shape[1] :]
        assert torch.equal(together[row, : len(alone)], alone)


@every_language_model
def test_vision_tokens_enter_the_first_layer_at_the_size_of_text(joined, family):
    model, processor = joined(family, NONE)
    seen = []
    model.model.language_model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    words = torch.arange(model.config.text_config.vocab_size)[None]
    model(input_ids=words[words != model.config.image_token_id][None])
    inputs = processor.apply_chat_template(BATCH[0], **PROMPT)
    model(**inputs)
    text, prompt = (x[0].pow(2).mean(-1).sqrt() for x in seen)
    vision = prompt[inputs["input_ids"][0] == model.config.image_token_id]
    torch.testing.assert_close(
        vision, text.median().expand_as(vision), rtol=2e-2, atol=0
    )  # the added token moves the median


@every_language_model
def test_re_fusion_is_recomputed_under_activation_checkpointing_with_equal_gradients(joined, family):
    gradients = []
    for checkpointing in (False, True):
        model, processor = joined(family, V2)
        stir(model).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        batch = processor.pad([processor.encode(answered("What?", "42", page(1)))], side="right")
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.parts()["refusion"]})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_a_vit_without_its_pooler_loads(folders, tmp_path):
    """A ViT published as a classifier has none, and nothing reads it."""
    AutoModel.from_pretrained(folders("vision", "vit"), add_pooling_layer=False).save_pretrained(tmp_path)
    save_processor_of(folders("vision", "vit"), tmp_path)
    before = torch.random.get_rng_state()
    first, second = (
        VisionRememberForConditionalGeneration.from_backbones(tmp_path, folders("text", "qwen2")) for _ in range(2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    for (name, left), (_, right) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(left, right), name


def save_processor_of(folder, target):
    (target / "preprocessor_config.json").write_bytes((folder / "preprocessor_config.json").read_bytes())
