import dataclasses

import numpy as np
import pytest

from tests.evaluation import made_up
from vision_remember.evaluation.summary import (
    difference,
    layout_difference,
    mean_over_seeds,
    recovered,
    recovered_on_average,
    row_scores,
    tabulate,
)
from vision_remember.evaluation.wording import average_sentence

SEEDS = (0, 1, 2)
PARTS = {"compressed": "avg_pool", "uncompressed": "uncompressed", "fine": made_up.FINE}


@pytest.fixture(scope="module")
def table():
    return tabulate(made_up.answers(made_up.CHANCES, seeds=SEEDS, pages=150), "test")


def test_scores_are_plain_means_of_the_answers(table) -> None:
    records = made_up.answers(made_up.CHANCES, seeds=SEEDS, pages=150)["avg_pool", 1]
    scores = row_scores(table, "avg_pool", 1)
    for family in (*made_up.FINE, *made_up.COARSE):
        marks = [record.exact_match for record in records if record.family == family]
        assert scores[family]["value"] == pytest.approx(sum(marks) / len(marks))
        assert scores[family]["n"] == len(marks) == 300
        low, high = scores[family]["ci95"]
        assert low < scores[family]["value"] < high


def test_recovered_is_the_ratio_of_differences_of_fine_means(table) -> None:
    mean = {row: mean_over_seeds(table, row, made_up.FINE)["value"] for row in made_up.CHANCES}
    gain = recovered(table, "avg_pool + remember", **PARTS)
    expected = (mean["avg_pool + remember"] - mean["avg_pool"]) / (mean["uncompressed"] - mean["avg_pool"])
    assert gain["mean"] == pytest.approx(expected)
    assert gain["ci95"][0] < expected < gain["ci95"][1]


def test_the_interval_of_recovered_is_that_of_a_loop_over_seeds_and_pages() -> None:
    """A plain nested loop with other random numbers; its ends differ by the noise of 1,500 resamples, about 5 % of the width."""
    answers = made_up.answers(made_up.CHANCES, seeds=SEEDS, pages=25)
    ends = recovered(tabulate(answers, "test"), "avg_pool + remember", **PARTS)["ci95"]
    marks = {(key, family): _per_page(records, family) for key, records in answers.items() for family in made_up.FINE}
    rng, ratios = np.random.default_rng(0), []
    for _ in range(1500):
        normal = rng.standard_normal(3)
        weights = 1 / 3 + (normal - normal.mean()) / np.sqrt(3 * rng.chisquare(2))
        drawn = {family: rng.integers(25, size=25) for family in made_up.FINE}
        mean = {}
        for row in made_up.CHANCES:
            mean[row] = sum(
                weight * np.mean([marks[(row, seed), family][drawn[family]].mean() for family in drawn])
                for seed, weight in zip(SEEDS, weights, strict=True)
            )
        lead = mean["uncompressed"] - mean["avg_pool"]
        ratios.append((mean["avg_pool + remember"] - mean["avg_pool"]) / lead)
    width = ends[1] - ends[0]
    np.testing.assert_allclose(ends, np.quantile(ratios, [0.025, 0.975]), atol=0.12 * width)


def test_recovered_is_null_with_the_reason_where_nothing_was_lost() -> None:
    chances = {"uncompressed": 0.90, "avg_pool": 0.89, "avg_pool + remember": 0.95}
    gain = recovered(tabulate(made_up.answers(chances, pages=400), "test"), "avg_pool + remember", **PARTS)
    assert gain["mean"] is None and gain["ci95"] is None
    assert "less than 5" in gain["reason"]


def test_recovered_may_exceed_one() -> None:
    chances = {"uncompressed": 0.6, "avg_pool": 0.2, "avg_pool + remember": 0.9}
    gain = recovered(tabulate(made_up.answers(chances), "test"), "avg_pool + remember", **PARTS)
    assert gain["mean"] > 1 and gain["ci95"][0] > 1


def test_the_average_recovery_is_the_mean_of_the_ratios_in_every_resample() -> None:
    chances = {**made_up.CHANCES, "packer": 0.5, "packer + remember": 0.8}
    table = tabulate(made_up.answers(chances, seeds=SEEDS), "test")
    given = {"uncompressed": "uncompressed", "fine": made_up.FINE}
    twins = {"avg_pool + remember": "avg_pool", "packer + remember": "packer"}
    each = [recovered(table, row, compressed=twin, **given) for row, twin in twins.items()]
    both = recovered_on_average(table, twins, **given)
    assert both["mean"] == pytest.approx((each[0]["mean"] + each[1]["mean"]) / 2)
    assert both["ci95"][0] < both["mean"] < both["ci95"][1]
    widths = [one["ci95"][1] - one["ci95"][0] for one in each]
    assert both["ci95"][1] - both["ci95"][0] < max(widths)  # two rows say more than the worse of them
    alone = recovered_on_average(table, {"packer + remember": "packer"}, **given)
    assert alone["mean"] == each[1]["mean"] and np.allclose(alone["ci95"], each[1]["ci95"], atol=5e-3)


def test_a_row_that_lost_nothing_is_left_out_of_an_average_and_named() -> None:
    chances = {**made_up.CHANCES, "packer": 0.89, "packer + remember": 0.95}
    table = tabulate(made_up.answers(chances, pages=400), "test")
    given = {"uncompressed": "uncompressed", "fine": made_up.FINE}
    alone = recovered_on_average(table, {"avg_pool + remember": "avg_pool"}, **given)
    twins = {"avg_pool + remember": "avg_pool", "packer + remember": "packer"}
    both = recovered_on_average(table, twins, **given)
    assert (both["mean"], both["ci95"], both["rows"]) == (alone["mean"], alone["ci95"], ["avg_pool + remember"])
    assert list(both["left_out"]) == ["packer + remember"] and alone["left_out"] == {}
    assert "Left out: packer + remember (uncompressed leads packer by" in average_sentence("remember", both)
    none = recovered_on_average(table, {"packer + remember": "packer"}, **given)
    assert none["mean"] is none["ci95"] is None and none["rows"] == []
    assert average_sentence("remember", none).startswith("remember has no average recovery. Left out: packer")


def test_a_difference_is_that_of_the_means_and_turns_with_its_rows(table) -> None:
    mean = {row: mean_over_seeds(table, row, made_up.FINE)["value"] for row in made_up.CHANCES}
    there = difference(table, "avg_pool + remember", "avg_pool", made_up.FINE)
    back = difference(table, "avg_pool", "avg_pool + remember", made_up.FINE)
    assert there["difference"] == pytest.approx(mean["avg_pool + remember"] - mean["avg_pool"])
    assert np.allclose(there["ci95"], [-end for end in reversed(back["ci95"])])


def test_a_row_against_itself_differs_by_exactly_nothing(table) -> None:
    layout = layout_difference(table, "avg_pool", compressed="avg_pool", coarse=made_up.COARSE)
    assert layout["difference"] == 0 and layout["ci95"] == [0, 0]


def test_layout_is_judged_by_one_point_and_a_thousand_questions() -> None:
    few = tabulate(made_up.answers(made_up.CHANCES, pages=499), "test")
    verdict = layout_difference(few, "avg_pool + remember", compressed="avg_pool", coarse=made_up.COARSE)
    assert verdict["not_hurt"] is None and "998 questions" in verdict["reason"]
    answers = made_up.answers(made_up.CHANCES, pages=500)
    for lost, not_hurt in ((10, True), (11, False)):  # of 1,000 questions: exactly one point, and just beyond
        answers["avg_pool + remember", 0] = _worsened(answers["avg_pool", 0], lost)
        verdict = layout_difference(
            tabulate(answers, "test"), "avg_pool + remember", compressed="avg_pool", coarse=made_up.COARSE
        )
        assert verdict["n"] == 1000 and verdict["not_hurt"] is not_hurt, lost
        assert verdict["ci95"][0] <= verdict["difference"] <= verdict["ci95"][1]


def test_rows_that_answered_other_questions_are_refused() -> None:
    answers = made_up.answers(made_up.CHANCES, pages=3)
    answers["avg_pool", 0] = answers["avg_pool", 0][:-1]
    with pytest.raises(
        ValueError, match="17 answers of row avg_pool, seed 0 are not to the 18 questions of row uncompressed"
    ):
        tabulate(answers, "test")


def _per_page(records, family: str, pages: int = 25, questions: int = 2) -> np.ndarray:
    """The mean of each page of a family, float[pages]; the made-up pages all have as many questions."""
    marks = [record.exact_match for record in records if record.family == family]
    return np.array(marks).reshape(pages, questions).mean(axis=1)


def _worsened(records, lost: int):
    """The same records with `lost` right answers on layout made wrong."""
    changed, left = [], lost
    for record in records:
        if left and record.family == "layout" and record.exact_match:
            record, left = dataclasses.replace(record, exact_match=0.0), left - 1
        changed.append(record)
    return changed
