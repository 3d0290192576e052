import torch

from vision_remember.bench.prefill import LARGEST, NEW_TOKENS, NUM_TEXT_TOKENS, TINY, _config, measure, pair, text_lines
from vision_remember.model.flops import prompt_ids


def test_both_models_say_the_same_and_one_of_them_remembers_three_times():
    models = pair(TINY)
    config = models["none"].config
    inputs = {"input_ids": prompt_ids(config, 10), "pixel_values": torch.randn(1, *config.pixel_shape)}
    with torch.inference_mode():
        assert torch.equal(models["none"](**inputs).logits, models["remember"](**inputs).logits)
    assert len(models["remember"].model.refusion.layers) == 3 and not models["none"].model.refusion.layers


def test_the_shapes_are_those_of_the_bar():
    config = _config(LARGEST, {"type": "remember"})
    assert config.token_grid.num_cells == 144
    shape = config.text_config
    attention = shape.hidden_size * (shape.hidden_size + 128) * 2
    layers = shape.num_hidden_layers * (attention + 3 * shape.hidden_size * shape.intermediate_size)
    assert 0.49e9 < layers + shape.vocab_size * shape.hidden_size < 0.5e9


def test_what_is_reported_is_what_was_measured():
    found = measure(TINY, rounds=3)
    assert found["tokens"] == 144 and found["text_tokens"] == NUM_TEXT_TOKENS and found["new_tokens"] == NEW_TOKENS
    for kind in ("prefill_ratio", "decode_ratio"):
        assert 0 < found[kind]["quarter"] <= found[kind]["median"] <= found[kind]["three_quarters"]
    assert all(value > 0 for kind in ("prefill_ms", "decode_tokens_per_second") for value in found[kind].values())
    assert f"ratio {found['prefill_ratio']['median']:.4f}" in "\n".join(text_lines(found))
