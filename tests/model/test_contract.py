"""Every projector beside every re-fusion method, on a canvas that is no square and, where it is not refused, does not divide.

The rooms are listed and no plug-in is named: a new file is tried beside all others the day it appears.
"""

import itertools
import typing

import pytest
import torch
from transformers import Qwen2Config, ViTConfig

from tests.model.conftest import stir
from vision_remember import plugins
from vision_remember.geometry import Grid
from vision_remember.model import VisionRememberConfig, VisionRememberForConditionalGeneration

PATCH, IMAGE, OPEN, CLOSE, PAD = 8, 47, 48, 49, 0
AWKWARD, WIDE = Grid(5, 7), Grid(4, 6)  # 2 divides no side of the one and both of the other
SMALL = {
    "token_grid": (2, 3),
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_width": 4,
    "num_queries": 4,
    "num_latents": 4,
    "full_layers": 2,
    "levels": (1, 3),
}
TOLERANCE = 1e-5  # float32 sums in another order
PROJECTORS, REFUSIONS = plugins.names("projectors"), plugins.names("refusion")
ALL = list(itertools.product(PROJECTORS, REFUSIONS))
# Every plug-in of both rooms is in one of these pairs; the others take longer than they find.
FEW = [
    (PROJECTORS[i % len(PROJECTORS)], REFUSIONS[-1 - i % len(REFUSIONS)])
    for i in range(max(len(PROJECTORS), len(REFUSIONS)))
]
PAIRS = [pytest.param(pair, marks=[] if pair in FEW else pytest.mark.slow, id="-".join(pair)) for pair in ALL]


def options_of(room, name, grid):
    hints = typing.get_type_hints(plugins.load(room, name).Config)
    small = {"width": 16, "num_heads": 2}
    if room == "projectors":
        small = {**SMALL, "patch_grid": (grid.height, grid.width)}
    return {"type": name, **{key: value for key, value in small.items() if key in hints}}


def config_of(projector, refusion, grid, cell=None):
    options = options_of("refusion", refusion, grid)
    return VisionRememberConfig(
        vision_config=ViTConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=[grid.height * PATCH, grid.width * PATCH],
            patch_size=PATCH,
            initializer_range=0.2,
        ),
        text_config=Qwen2Config(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=50,
            initializer_range=0.2,
            eos_token_id=None,
            bos_token_id=None,
            pad_token_id=PAD,
        ),
        projector=options_of("projectors", projector, grid),
        refusion=options if cell is None else {**options, "cell": cell},
        image_token_id=IMAGE,
        turn_start_token_id=OPEN,
        turn_end_token_id=CLOSE,
        user_header_length=1,
    )


def build(projector, refusion):
    """The model on the most awkward grid that both take; every refusal names the grid of the patches."""
    has_cell = "cell" in typing.get_type_hints(plugins.load("refusion", refusion).Config)
    for grid, cell in itertools.product((AWKWARD, WIDE), (None, [1, 1], [2, 2]) if has_cell else (None,)):
        torch.manual_seed(0)
        try:
            model = VisionRememberForConditionalGeneration(config_of(projector, refusion, grid, cell)).eval()
            model.get_image_features(torch.zeros(1, *model.config.pixel_shape))
        except ValueError as error:
            assert str(grid) in str(error), "a refusal names the grid"
            continue
        model.generation_config.update(suppress_tokens=[IMAGE], pad_token_id=PAD, eos_token_id=None)
        return stir(model)
    pytest.skip(f"{refusion} refuses both grids beside {projector}, by name")


@pytest.mark.parametrize("number", range(2), ids=["projectors", "refusion"])
def test_no_plug_in_is_refused_beside_all_others(number):
    def is_taken(pair):
        try:
            return bool(build(*pair))
        except pytest.skip.Exception:
            return False

    for name in (PROJECTORS, REFUSIONS)[number]:
        assert any(is_taken(pair) for pair in ALL if pair[number] == name), name


@pytest.fixture(scope="module", params=PAIRS)
def model(request):
    return build(*request.param)


def turn(text, num_images, size):
    return [OPEN, 1, *[IMAGE] * (num_images * size), *text, CLOSE, OPEN, 2]


def batch_of(model):
    """Two images in a row, text alone, one image: ids and mask, padded on the left, and the pixels of all images."""
    size = model.model.token_grid.num_cells
    rows = [
        turn([5, 6, 7], 2, size),
        turn([8, 9], 0, size),
        [*turn([3], 0, size), 4, CLOSE, *turn([10, 11, 12], 1, size)],
    ]
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    pixels = torch.randn(3, *model.config.pixel_shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


def alone(inputs, row):
    """One row of the batch without its padding, and with its own images."""
    length, images = int(inputs["attention_mask"][row].sum()), ((0, 2), (2, 2), (2, 3))[row]
    single = {"input_ids": inputs["input_ids"][row : row + 1, -length:]}
    pixels = inputs["pixel_values"][slice(*images)]
    return {**single, "attention_mask": torch.ones(1, length, dtype=torch.long)} | (
        {"pixel_values": pixels} if len(pixels) else {}
    )


def logits_of(model, inputs, num_tokens=3, **options):
    out = model.generate(
        **inputs,
        max_new_tokens=num_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return torch.stack(out.logits, 1)


def test_a_row_of_a_padded_batch_says_what_it_says_alone_greedy_and_in_beams(model):
    inputs = batch_of(model)
    together, beams = logits_of(model, inputs), {"num_beams": 2, "max_new_tokens": 3, "do_sample": False}
    searched = model.generate(**inputs, **beams)[:, inputs["input_ids"].shape[1] :]
    for row in range(3):
        single = alone(inputs, row)
        assert (logits_of(model, single)[0] - together[row]).abs().max() <= TOLERANCE
        assert torch.equal(model.generate(**single, **beams)[0, single["input_ids"].shape[1] :], searched[row])


def test_every_image_is_seen_by_its_own_row_alone(model):
    inputs = batch_of(model)
    before = model(**inputs).logits
    for image, row in enumerate((0, 0, 2)):
        pixels = inputs["pixel_values"].clone()
        pixels[image] = pixels[image].flip(-1)
        changed = (model(**{**inputs, "pixel_values": pixels}).logits != before).flatten(1).any(1)
        assert changed.tolist() == [row == other for other in range(3)]


def test_prefill_in_chunks_that_cut_an_image_gives_the_same_or_is_refused(model):
    inputs = alone(batch_of(model), 2)
    cut = inputs["input_ids"][0].tolist().index(IMAGE) + 2
    try:
        found = logits_of(model, inputs, prefill_chunk_size=cut)
    except ValueError as error:
        assert "chunk" in str(error)
    else:
        assert (found - logits_of(model, inputs)).abs().max() <= TOLERANCE


def test_checkpointed_activations_give_the_same_gradients_to_every_inserted_parameter(model):
    inputs, gradients = batch_of(model), []
    for is_checkpointed in (False, True):
        (model.activation_checkpointing_enable if is_checkpointed else model.activation_checkpointing_disable)()
        model.train().zero_grad()
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        gradients.append({name: p.grad for part in ("projector", "refusion") for name, p in model.parts()[part]})
    model.activation_checkpointing_disable()
    model.eval().zero_grad()
    for name, gradient in gradients[0].items():
        # Zero is right where a token owns one patch: there is nothing to choose, so queries and keys do not matter.
        assert gradient is not None and torch.equal(gradient, gradients[1][name]), name
    assert all(gradient.abs().max() > 0 for name, gradient in gradients[0].items() if "projector" in name)


def test_calls_leave_nothing_behind_on_the_modules(model):
    inputs = batch_of(model)
    expected, things = model(**inputs).logits, {name: sorted(vars(module)) for name, module in model.named_modules()}
    model(**alone(inputs, 0))
    model(**alone(inputs, 1))
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == things
    assert torch.equal(model(**inputs).logits, expected)


def test_a_saved_model_answers_and_learns_in_half_precision(model, tmp_path):
    model.save_pretrained(tmp_path)
    half = VisionRememberForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    inputs = batch_of(half)
    assert half.eval()(**inputs).logits.dtype is torch.bfloat16
    half.generate(**inputs, max_new_tokens=2, do_sample=False)
    for mixed in (half, model):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed is model):
            loss = mixed.train()(**inputs, labels=inputs["input_ids"], use_cache=False).loss
        loss.backward()
        assert loss.isfinite() and all(parameter.grad is not None for _, parameter in mixed.parts()["projector"])
    model.eval().zero_grad()


def test_a_batch_of_text_alone_reaches_every_inserted_parameter_and_changes_nothing(model):
    ids = torch.tensor([turn([5, 6, 7], 0, 0), turn([8, 9, 10], 0, 0)])
    trained = model.train()(input_ids=ids, labels=ids, use_cache=False)
    trained.loss.backward()
    gradients = {name: p.grad for part in ("projector", "refusion") for name, p in model.parts()[part]}
    model.eval().zero_grad()
    assert torch.equal(trained.logits, model(input_ids=ids).logits)
    for name, gradient in gradients.items():
        assert gradient is not None and not gradient.any(), name
