"""One model at several compression rates: at each it is the model made for that rate alone, bit for bit."""

import pytest
import torch

from tests.model.conftest import NONE, SVA, V1, V2, ask, page, stir
from tests.tiny import save_encoder
from vision_remember.geometry import Grid
from vision_remember.model import VisionRememberForConditionalGeneration, VisionRememberProcessor
from vision_remember.model.engine import Engine, Request

RATES = {36: 1, 9: 2, 4: 3}  # tokens of 6 x 6 patches -> the scale that makes them
FASTV = {"type": "fastv", "full_layers": 2}
TURNS = [ask("What is the total?", page(1)), ask("Compare these two.", page(2), page(3)), ask("Hello")]


def at_scale(backbones, scale: int, refusion: dict):
    projector = {"type": "avg_pool", "scale": scale}
    return VisionRememberForConditionalGeneration.from_backbones(*backbones, projector=projector, refusion=refusion)


@pytest.fixture(scope="module", params=["none", "v1", "v2", "sva", "fastv"])
def elastic(request, backbones):
    """A model that makes 9 tokens by itself, with re-fusion that changes what it says."""
    methods = {"none": NONE, "v1": V1, "v2": V2, "sva": SVA | {"layers": [0]}, "fastv": FASTV}
    return stir(at_scale(backbones, 2, methods[request.param]))


@pytest.mark.parametrize("rate", RATES)
def test_at_every_rate_the_elastic_model_is_the_model_of_that_rate(elastic, backbones, rate):
    fixed = at_scale(backbones, RATES[rate], dict(elastic.config.refusion))
    fixed.load_state_dict(elastic.state_dict())
    own = VisionRememberProcessor.from_backbones(*backbones, fixed.config)
    shared = VisionRememberProcessor.from_backbones(*backbones, elastic.config).at(rate)
    batches = [
        processor.pad([processor.encode(turns, add_generation_prompt=True) for turns in TURNS], side="left")
        for processor in (own, shared)
    ]
    assert torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])
    assert own._get_num_multimodal_tokens([(40, 30)]) == shared._get_num_multimodal_tokens([(40, 30)])
    assert batches[1]["tokens_per_image"] == rate and "tokens_per_image" not in batches[0]
    with torch.inference_mode():
        assert torch.equal(fixed(**batches[0]).logits, elastic(**batches[1]).logits)
    requests = [Request(turns) for turns in TURNS]
    said = Engine(elastic, shared.at(None), tokens_per_image=rate).answer(requests, max_new_tokens=5)
    assert said == Engine(fixed, own).answer(requests, max_new_tokens=5)


@pytest.fixture(scope="module")
def clip_l(backbones, tmp_path_factory):
    """The geometry of CLIP-L/14-336, 24 x 24 patches, at toy widths, and the language model."""
    return save_encoder(tmp_path_factory.mktemp("clip_l"), image_size=336, patch_size=14), backbones[1]


@pytest.mark.parametrize("refusion", [V1, V2])
@pytest.mark.parametrize(("rate", "scale"), [(144, 2), (64, 3), (36, 4), (16, 6)])
def test_clip_l_is_read_in_144_64_36_or_16_tokens(clip_l, rate, scale, refusion):
    elastic, fixed = (stir(at_scale(clip_l, made, refusion)) for made in (2, scale))
    fixed.load_state_dict(elastic.state_dict())
    processor = VisionRememberProcessor.from_backbones(*clip_l, elastic.config)
    batch = processor.at(rate).apply_chat_template(TURNS, tokenize=True, return_dict=True)
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [rate, 2 * rate, 0]
    own = {name: value for name, value in batch.items() if name != "tokens_per_image"}
    with torch.inference_mode():
        assert torch.equal(elastic(**batch).logits, fixed(**own).logits)
    engine, requests = Engine(elastic, processor, tokens_per_image=rate), [Request(turns) for turns in TURNS]
    together = engine.answer(requests, max_new_tokens=3)
    assert together == [engine.answer([request], max_new_tokens=3)[0] for request in requests]


@pytest.mark.parametrize("elastic", ["v1", "v2"], indirect=True)
def test_beams_and_streams_keep_the_rate(elastic, backbones):
    processor = VisionRememberProcessor.from_backbones(*backbones, elastic.config)
    batch = processor.at(4).pad([processor.at(4).encode(TURNS[0], add_generation_prompt=True)], side="left")
    batch.pop("labels")
    assert (batch["input_ids"] == processor.image_token_id).sum() == 4
    assert len(elastic.generate(**batch, num_beams=3, max_new_tokens=4, do_sample=False)) == 1
    engine = Engine(elastic, processor, tokens_per_image=4)
    [answer] = engine.answer([Request(TURNS[0])], max_new_tokens=6)
    assert "".join(engine.stream(Request(TURNS[0]), max_new_tokens=6)) == answer.text
    assert engine.token_grid == engine.explain(Request(TURNS[0]), max_new_tokens=2).token_grid == Grid(2, 2)


@pytest.mark.parametrize("elastic", ["v1"], indirect=True)
def test_a_rate_that_the_projector_cannot_make_is_refused(elastic, backbones):
    processor = VisionRememberProcessor.from_backbones(*backbones, elastic.config)
    for rate, why in ((0, "at least 1"), (49, "7x7 tokens of a 6x6 grid"), (7, "1x7 tokens")):
        with pytest.raises(ValueError, match=why):
            Engine(elastic, processor, tokens_per_image=rate)
    mlp = VisionRememberForConditionalGeneration.from_backbones(*backbones, projector={"type": "mlp"}, refusion=NONE)
    with pytest.raises(ValueError, match="mlp makes 36 tokens of a 6x6 grid, not 9"):
        Engine(mlp, VisionRememberProcessor.from_backbones(*backbones, mlp.config), tokens_per_image=9)


@pytest.mark.parametrize("elastic", ["v1"], indirect=True)
def test_images_and_prompt_of_two_rates_are_refused_with_both_numbers(elastic, backbones):
    processor = VisionRememberProcessor.from_backbones(*backbones, elastic.config)
    batch = processor.pad([processor.encode(TURNS[0])], side="left")
    with pytest.raises(ValueError, match="9 image placeholders in input_ids, 4 vision tokens given"):
        elastic(**{**batch, "tokens_per_image": 4})
    image = elastic.get_image_features(batch["pixel_values"], tokens_per_image=9)
    with pytest.raises(ValueError, match="images of 9 vision tokens, and tokens_per_image says 4"):
        elastic(input_ids=batch["input_ids"], mm_encoder_outputs={"image": image}, tokens_per_image=4)


def test_an_elastic_mqt_beside_remember_makes_only_numbers_that_have_windows(backbones):
    mqt = {"type": "mqt", "num_queries": 36, "num_heads": 2}
    model = VisionRememberForConditionalGeneration.from_backbones(*backbones, projector=mqt, refusion=V1)
    assert model.model.grid_of(16) == Grid(4, 4)
    with pytest.raises(ValueError, match="9 vision tokens without places of their own"):
        model.model.grid_of(9)
