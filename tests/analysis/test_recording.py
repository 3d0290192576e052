"""What is recorded is what the model computes: its own hidden states, its own attention, and, muted, those of a model without memory."""

import pytest
import torch

from vision_remember import plugins
from vision_remember.analysis.recording import AS_IT_IS, MUTED, record
from vision_remember.analysis.sheets import rendered_sheets
from vision_remember.model.chat import first_question

SHEETS = rendered_sheets(3)
NONE = {"type": "none"}
REMEMBER = {"type": "remember", "layers": [0, 2]}
GUIDED = {**REMEMBER, "bidirectional": True, "guidance": True}
NEEDED = {  # where a default does not fit the tiny backbones
    "deepstack": {"cell": [3, 3]},
    "deepstack_hd": {"layers": [-1, 0, 1, 2]},
    "sva": {"width": 16, "num_heads": 2, "positions": 9},
}


def test_states_are_the_hidden_states_of_the_model(engine_of) -> None:
    engine = engine_of(REMEMBER)
    reading = record(engine, SHEETS[:1]).readings[AS_IT_IS]
    encoding = engine.processor.encode(
        first_question(SHEETS[0].question, 1), [SHEETS[0].image], add_generation_prompt=True
    )
    inputs = engine.processor.pad([encoding], side="left")
    del inputs["labels"]
    with torch.inference_mode():
        hidden = engine.model(**inputs, output_hidden_states=True).hidden_states
        tokens = engine.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    is_vision = inputs["input_ids"][0] == engine.model.config.image_token_id
    assert len(reading.states) == len(hidden) == 5
    torch.testing.assert_close(reading.states[0][0], tokens)
    for state, expected in zip(reading.states, hidden, strict=True):
        torch.testing.assert_close(state[0], expected[0, is_vision], atol=1e-4, rtol=1e-4)


def test_muted_is_the_model_without_re_fusion(engine_of) -> None:
    muted = record(engine_of(REMEMBER), SHEETS).readings[MUTED]
    plain = record(engine_of(NONE), SHEETS).readings
    assert list(plain) == [AS_IT_IS]
    for state, expected in zip(muted.states, plain[AS_IT_IS].states, strict=True):
        torch.testing.assert_close(state, expected)
    torch.testing.assert_close(muted.share, plain[AS_IT_IS].share)
    assert muted.looks == {}


def test_remembering_changes_states_only_from_its_first_layer_on(engine_of) -> None:
    readings = record(engine_of(REMEMBER), SHEETS).readings
    same = [torch.equal(*pair) for pair in zip(readings[AS_IT_IS].states, readings[MUTED].states, strict=True)]
    assert same == [True, False, False, False, False]


def test_batches_change_no_result(engine_of) -> None:
    done: list[int] = []
    together = record(engine_of(GUIDED), SHEETS, progress=done.append)
    alone = record(engine_of(GUIDED), SHEETS, batch_size=1, progress=done.append)
    assert done == [3, 1, 1, 1]
    torch.testing.assert_close(together.features, alone.features)
    for name, reading in together.readings.items():
        other = alone.readings[name]
        # Other batches multiply other shapes, so float32 rounds differently.
        for x, y in zip(
            [*reading.states, reading.share, reading.density, *reading.looks.values()],
            [*other.states, other.share, other.density, *other.looks.values()],
            strict=True,
        ):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-3)


def test_looks_are_weights_over_windows(engine_of) -> None:
    looks = record(engine_of(REMEMBER), SHEETS).readings[AS_IT_IS].looks
    assert list(looks) == [0, 2]
    for weights in looks.values():
        assert weights.shape == (3, 4, 9)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4))


@pytest.mark.parametrize("name", plugins.names("refusion"))
def test_every_method_is_recorded_and_left_as_it_was(name: str, engine_of) -> None:
    engine = engine_of({"type": name, **NEEDED.get(name, {})})
    config = engine.model.model.language_model.config
    before = config._attn_implementation
    recording = record(engine, SHEETS)
    assert config._attn_implementation == before
    assert recording.features.shape == (3, 36, 32)
    refusion = engine.model.model.refusion
    for reading in recording.readings.values():
        # A method that drops tokens is seen up to its drop.
        passed = 4 if refusion.drops_after is None else refusion.drops_after
        assert [state.shape for state in reading.states] == [(3, 4, 32)] * (passed + 1)
        num_layers = 4 if refusion.drops_after is None else refusion.drops_after + 1
        assert reading.share.shape == reading.density.shape == (3, num_layers)
        assert ((reading.share > 0) & (reading.share < 1)).all()
