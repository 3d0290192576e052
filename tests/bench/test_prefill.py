import pytest
import torch

from vision_remember.bench.prefill import (
    MODELS,
    NEW_TOKENS,
    NUM_TEXT_TOKENS,
    SIZES,
    _config,
    build,
    measure,
    text_lines,
)
from vision_remember.model.flops import prompt_ids


def test_all_models_share_their_weights_and_one_of_them_remembers_three_times():
    models = build(SIZES["tiny"], torch.device("cpu"))
    config = models["none"].config
    inputs = {"input_ids": prompt_ids(config, 10), "pixel_values": torch.randn(1, *config.pixel_shape)}
    with torch.inference_mode():
        assert torch.equal(models["none"](**inputs).logits, models["remember"](**inputs).logits)
    layers = {name: len(model.model.refusion.layers) for name, model in models.items()}
    assert layers == {"uncompressed": 0, "none": 0, "remember": 3}
    weights = models["remember"].state_dict()
    for name in ("uncompressed", "none"):
        own = models[name].state_dict()
        apart = {key for key in own if key not in weights or own[key].data_ptr() != weights[key].data_ptr()}
        assert len(apart) < len(own) and all("projector" in key for key in apart)
        assert not apart or name == "uncompressed"


@pytest.mark.parametrize(
    ("size", "least", "most"), [("0.5b", 0.49e9, 0.50e9), ("2b", 1.54e9, 1.55e9)], ids=["0.5b", "2b"]
)
def test_the_shapes_are_those_of_the_names(size, least, most):
    config = _config(SIZES[size], **MODELS["remember"])
    assert config.token_grid.num_cells == 144
    assert _config(SIZES[size], **MODELS["uncompressed"]).token_grid.num_cells == 576
    shape = config.text_config
    attention = shape.hidden_size * (shape.hidden_size + shape.hidden_size // shape.num_attention_heads * 2) * 2
    layers = shape.num_hidden_layers * (attention + 3 * shape.hidden_size * shape.intermediate_size)
    assert least < layers + shape.vocab_size * shape.hidden_size < most


def test_what_is_reported_is_what_was_measured():
    found = measure(SIZES["tiny"], rounds=3, batch=2)
    assert found["tokens"] == {"uncompressed": 576, "none": 144, "remember": 144}
    assert found["text_tokens"] == NUM_TEXT_TOKENS and found["new_tokens"] == NEW_TOKENS and found["batch"] == 2
    for kind in ("prefill", "decode", "uncompressed_prefill", "uncompressed_decode"):
        ratio = found[f"{kind}_ratio"]
        assert 0 < ratio["quarter"] <= ratio["median"] <= ratio["three_quarters"]
        assert f"{ratio['median']:.4f}" in "\n".join(text_lines(found))
    assert all(value > 0 for kind in ("prefill_ms", "decode_tokens_per_second") for value in found[kind].values())


@pytest.mark.parametrize(("rounds", "batch"), [(1, 1), (2, 0)])
def test_too_little_to_measure_is_refused(rounds, batch):
    with pytest.raises(ValueError, match="at least 2 rounds and 1 page"):
        measure(SIZES["tiny"], rounds=rounds, batch=batch)
