"""How one answer is scored: exact match and ANLS, both in [0, 1].

Each metric quotes its definition, and both take the best of several gold answers. They are plain functions of strings, so a reader can
score an answers file again without this package's runner.
"""

from collections.abc import Callable, Sequence

from anls import anls_score

ANLS_THRESHOLD = 0.5


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 when the prediction is one of the answers, whitespace aside.

    Leading and trailing blanks go and runs of blanks become one, in prediction and answer alike. Case and punctuation count: a code
    such as `K7b` is only read when it is read completely.

    Args:
        prediction: the model's answer.
        answers: accepted answers, at least one.

    Raises:
        ValueError: there is no gold answer.

    Source: our choice of normalisation; `lmms_eval.api.metrics.exact_match` compares the bare strings.
    """
    predicted = _squeeze(prediction)
    return float(any(predicted == _squeeze(answer) for answer in _checked(answers)))


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Return the average normalised Levenshtein similarity of one question.

    "s = 1 - NL(a, o) if NL(a, o) < 0.5, else 0", the best over the gold answers, case and runs of blanks ignored; NL is the edit distance
    over the length of the longer string.

    Args:
        prediction: the model's answer.
        answers: accepted answers, at least one.

    Raises:
        ValueError: there is no gold answer.

    Source: Biten et al., "Scene Text Visual Question Answering" (arXiv 1905.13648), equation 1; computed by the package `anls`.
    """
    return float(anls_score(prediction=prediction, gold_labels=list(_checked(answers)), threshold=ANLS_THRESHOLD))


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {"exact_match": exact_match, "anls": anls}


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _checked(answers: Sequence[str]) -> Sequence[str]:
    if isinstance(answers, str) or not answers:
        raise ValueError(f"a question needs a list of at least one gold answer, got {answers!r}: give [answer]")
    return answers
