"""The lines of the figures are the numbers of the measurements, in per cent where they say so, with a gap where there is no number."""

import dataclasses

import pytest

from tests.analysis.made_up import curve, draws, measured
from vision_remember.analysis import figures
from vision_remember.analysis.recording import AS_IT_IS, MUTED
from vision_remember.geometry import Grid

ONE = measured()
CHARACTERS = ONE.characters
PLAIN = {"read": {AS_IT_IS: curve(0.1, 0.25)}, "resampled": draws(0.1, 0.25), "muting": None}
TWO = [ONE, measured("two", Grid(6, 6))]


def heights(panel) -> list[list[float]]:
    return [[round(y, 6) for y in line.get_ydata()] for line in panel.lines if len(line.get_xdata()) == 2]


def test_probes_are_drawn_in_per_cent_and_gains_in_points() -> None:
    drawn = figures.characters([ONE])
    left, right = drawn.figure.axes
    assert [30, 60] in heights(left) and [30, 20] in heights(left)
    assert [0, 40] in heights(right)
    assert {row["quantity"] for row in drawn.rows} == {"encoder", "chance", "read", "muting costs"}
    assert {row["layers_passed"] for row in drawn.rows if row["quantity"] == "chance"} == {""}


def test_a_model_is_drawn_against_the_one_without_refusion() -> None:
    plain = measured("plain", insertions=(), characters=dataclasses.replace(CHARACTERS, **PLAIN))
    drawn = figures.characters([plain, ONE])
    assert [20, 35] in heights(drawn.figure.axes[1])
    assert "ahead of plain" in {row["quantity"] for row in drawn.rows}


def test_insertions_are_marked_where_their_work_shows() -> None:
    [marks] = [line for line in figures.characters([ONE]).figure.axes[0].lines if line.get_marker() == "^"]
    assert list(marks.get_xdata()) == [1, 1]  # before layer 0 and after it: both are in what layer 0 leaves


def test_models_of_different_compression_are_also_drawn_against_it() -> None:
    assert len(figures.attention([ONE, measured("other", Grid(4, 4))]).figure.axes) == 2
    points = figures.attention(TWO).figure.axes[2].lines[:2]
    assert [float(point.get_xdata()[0]) for point in points] == [9, 4]
    assert [float(point.get_ydata()[0]) for point in points] == pytest.approx([1.2, 1.2])


def test_without_any_detail_there_is_one_panel() -> None:
    bare = {AS_IT_IS: {"mean": [0.9, 0.5], "detail": [None, None]}}
    assert len(figures.similarity([measured(similarity=bare)]).figure.axes) == 1


def test_an_undefined_similarity_is_a_gap_and_an_empty_cell() -> None:
    drawn = figures.similarity([ONE])
    [first, second] = drawn.figure.axes[1].lines[0].get_ydata()
    assert first != first and second == 0.2
    empty = [row for row in drawn.rows if row["value"] == ""]
    assert [(row["reading"], row["layers_passed"]) for row in empty] == [(AS_IT_IS, 0), (MUTED, 0), (MUTED, 1)]
