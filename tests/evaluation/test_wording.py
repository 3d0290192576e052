"""Numbers as sentences."""

from vision_remember.evaluation.wording import no_gain_sentences


def test_rows_that_recover_nothing_for_one_reason_are_told_together() -> None:
    alone = {"mean": None, "reason": "no row is the same but for re-fusion"}
    gains = {"a": alone, "b": {"mean": None, "reason": "u leads c by 1.0 points, less than 5"}, "c": alone}
    assert no_gain_sentences(gains) == [
        "For a, c, recovery is not defined: no row is the same but for re-fusion.",
        "For b, recovery is not defined: u leads c by 1.0 points, less than 5.",
    ]
