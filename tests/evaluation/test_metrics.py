import random

import pytest

from vision_remember.evaluation.metrics import METRICS, anls, exact_match


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_the_gold_answer_scores_one_and_an_empty_answer_zero(metric) -> None:
    assert metric("K7b 40", ["K7b 40"]) == 1.0
    assert metric("", ["K7b 40"]) == 0.0


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_the_best_of_several_answers_counts(metric) -> None:
    assert metric("forty", ["40", "forty"]) == 1.0


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize("answers", [[], "40"], ids=["none", "a string"])
def test_a_question_without_a_list_of_answers_is_refused(metric, answers) -> None:
    with pytest.raises(ValueError, match="at least one gold answer"):
        metric("40", answers)


def test_blanks_do_not_count_but_case_does() -> None:
    assert exact_match("  top \n left ", ["top left"]) == 1.0
    assert exact_match("Top left", ["top left"]) == 0.0
    assert exact_match("topleft", ["top left"]) == 0.0


def test_anls_follows_its_equation_on_random_strings() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("ab C", k=rng.randrange(0, 7))) for _ in range(60)]
    for prediction in words:
        gold = rng.choice(words) or "x"
        a, b = (" ".join(word.lower().split()) for word in (prediction, gold))
        distance = _edits(a, b) / max(len(a), len(b), 1)
        assert anls(prediction, [gold]) == pytest.approx(1 - distance if distance < 0.5 else 0.0)


def _edits(a: str, b: str) -> int:
    """Edit distance from its definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(_edits(a[1:], b) + 1, _edits(a, b[1:]) + 1, _edits(a[1:], b[1:]) + (a[0] != b[0]))
