"""The sentences of a report say what the numbers say: gains, costs and doubts, where a method stops, and what was not recorded."""

import dataclasses

import pytest

from tests.analysis.made_up import curve, draws, measured
from vision_remember.analysis.recording import AS_IT_IS, MUTED
from vision_remember.analysis.wording import (
    density_sentence,
    looks_sentence,
    opening,
    reading_sentence,
    similarity_sentence,
)
from vision_remember.geometry import Grid

ABOUT = {"sheets": 200}
PROBED = measured().characters


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (0.4, "40.0 points (95 % interval 35.0 to 45.0) less than as it is"),
        (-0.4, "40.0 points (95 % interval 35.0 to 45.0) more than as it is"),
        (0.01, "1.0 points (95 % interval -4.0 to 6.0) less than as it is, which the interval does not tell from none"),
    ],
)
def test_what_muting_costs_is_called_what_its_interval_allows(gain: float, words: str) -> None:
    one = measured(characters=dataclasses.replace(PROBED, muting=curve(0.0, gain)))
    assert words in reading_sentence(one, [one])


def test_the_headline_is_the_distance_to_a_model_trained_without() -> None:
    read = {"read": {AS_IT_IS: curve(0.2, 0.25)}, "resampled": draws(0.2, 0.25, spread=0.04), "muting": None}
    plain = measured("plain", insertions=(), characters=dataclasses.replace(PROBED, **read))
    whole, one, control = measured("whole", Grid(12, 12), insertions=()), measured(), measured("control")
    told = "Off plain, with as many tokens and no re-fusion, it then reads 25.0 %: 35.0 points (95 % interval 34.0 to 36.0) less than"
    assert f"{told} off one." in opening([whole, plain, one, control], ABOUT).replace("34.1", "34.0").replace(
        "35.9", "36.0"
    )
    both = reading_sentence(one, [whole, plain, one, control])
    assert "Off plain," in both and "Off control, with as many tokens and remember," in both and "Off whole" not in both
    assert "Off one" not in reading_sentence(control, [whole, plain, one, control])  # said once
    assert "Off" not in reading_sentence(plain, [whole, plain, one]).split("After")[1]


def test_a_model_alone_is_compared_with_none() -> None:
    plain = dataclasses.replace(PROBED, read={AS_IT_IS: PROBED.read[AS_IT_IS]}, muting=None)
    one = measured(characters=plain)
    assert "less" not in reading_sentence(one, [one]) + opening([one], ABOUT)


def test_the_end_is_the_last_layer_unless_tokens_are_dropped() -> None:
    dropped, whole = measured(refusion="fastv"), measured(num_layers=1)
    assert "After 1 layer, before fastv drops tokens, it reads" in reading_sentence(dropped, [dropped])
    assert "After the last layer it reads" in reading_sentence(whole, [whole])


def test_without_probes_the_report_opens_with_the_density() -> None:
    assert density_sentence(measured()) in opening([measured(characters=None)], ABOUT)
    assert "1.20 times an even look" in density_sentence(measured())


def test_tokens_of_one_patch_dropped_no_detail() -> None:
    one = measured(tokens=Grid(12, 12))
    assert "no detail was dropped" in similarity_sentence(one)
    parts = {name: {"mean": [0.9, 0.5], "detail": [0.1, 0.2]} for name in (AS_IT_IS, MUTED)}
    assert "that to the detail from 0.10 to 0.20" in similarity_sentence(measured(similarity=parts))


def test_why_there_are_no_pictures_is_said() -> None:
    assert "has no re-fusion" in looks_sentence(measured(insertions=()))
    assert "deepstack, which records no attention" in looks_sentence(measured(refusion="deepstack"))
    looks = {0: None}
    assert "1 patch around it" in looks_sentence(measured(looks=looks, margin=1))
    assert "The question takes part" in looks_sentence(measured(looks=looks))
    assert "does not depend on what is asked" in looks_sentence(measured(looks=looks, is_guided=False))
    assert "2 patches around it" in looks_sentence(measured(looks=looks, margin=2))
