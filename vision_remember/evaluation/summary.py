"""What a comparison says: scores with intervals, what was recovered, and whether layout was hurt.

All rows answered the same questions, so all of it comes from one table: right answers per page, row and training seed. Fine families ask
for detail that compression loses; coarse ones (`layout`) for what it keeps.

- *Recovered* = (row - compressed) / (uncompressed - compressed), of fine-family means. `compressed` is the row with the same projector,
  tokens and overrides but re-fusion `none`; `uncompressed` is the comparison's reference. It may exceed 1. It is null where the
  uncompressed model leads by less than 5 points: a ratio to nearly nothing means nothing.
- *Recovered on average* is the mean of that ratio over several rows, in every resample; rows for which it is null are left out and named.
- *Difference*: the paired difference of two rows' fine-family means.
- *Layout not hurt*: the paired difference row - compressed on the coarse families is at least -1 point, on at least 1,000 questions.

Scores are fractions; one point is 0.01. Intervals: `bootstrap.py`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vision_remember.evaluation import bootstrap
from vision_remember.evaluation.bootstrap import Floats

MINIMUM_LEAD = 0.05
LAYOUT_TOLERANCE = 0.01
LAYOUT_QUESTIONS = 1_000
_ROUNDING = 1e-9  # a difference of exactly one point must not be lost to binary fractions


@dataclass(frozen=True, kw_only=True)
class FamilyTable:
    """One family: the score of every row and seed, and its resamples.

    Attributes:
        scores: float[N, S], N rows and S training seeds.
        resampled: float[R, N, S]; resample r drew the same pages for every row and seed.
        num_questions: questions each row answered with each seed.
    """

    scores: Floats
    resampled: Floats
    num_questions: int


@dataclass(frozen=True, kw_only=True)
class AnswerTable:
    """Every row and seed on the same pages of one split."""

    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    families: dict[str, FamilyTable]

    def mean(self, families: Sequence[str]) -> tuple[Floats, Floats]:
        """Return the plain mean over families: scores float[N, S] and resamples float[R, N, S]."""
        tables = [self.families[family] for family in families]
        scores, resampled = [table.scores for table in tables], [table.resampled for table in tables]
        return np.mean(scores, axis=0), np.mean(resampled, axis=0)


def tabulate(answers: Mapping[tuple[str, int], Sequence[Any]], split: str, metric: str = "exact_match") -> AnswerTable:
    """Build the table of one split from the records of every (row, seed).

    Args:
        answers: records by (row name, training seed), with `id`, `page`, `family` and the metric; every row with every seed.
        split: names the draws of pages, so that a split has the same resamples in every call.
        metric: the score of a record to use.

    Raises:
        ValueError: two rows did not answer the same questions.
    """
    rows, seeds = tuple(dict.fromkeys(row for row, _ in answers)), tuple(dict.fromkeys(seed for _, seed in answers))
    first = [(record.id, record.family) for record in answers[rows[0], seeds[0]]]
    scores = np.empty((len(first), len(rows), len(seeds)))
    for n, row in enumerate(rows):
        for s, seed in enumerate(seeds):
            records = answers[row, seed]
            if [(record.id, record.family) for record in records] != first:
                why = f"{len(records)} answers of row {row}, seed {seed} are not to the {len(first)} questions of row {rows[0]}"
                raise ValueError(f"{split}: {why}; delete the answers of the one that is out of date and run again")
            scores[:, n, s] = [getattr(record, metric) for record in records]
    members: dict[str, list[int]] = defaultdict(list)
    for index, (_, family) in enumerate(first):
        members[family].append(index)
    pages = [record.page for record in answers[rows[0], seeds[0]]]
    return AnswerTable(
        rows=rows,
        seeds=seeds,
        families={
            family: _family_table(scores[index], [pages[i] for i in index], key=f"{split}/{family}")
            for family, index in members.items()
        },
    )


def row_scores(table: AnswerTable, row: str, seed: int) -> dict[str, dict[str, Any]]:
    """Return `{family: {"value", "ci95", "n"}}` of one row trained with one seed."""
    n, s = table.rows.index(row), table.seeds.index(seed)
    return {
        name: {**_with_ci(family.scores[n, s], family.resampled[:, n, s]), "n": family.num_questions}
        for name, family in table.families.items()
    }


def mean_over_seeds(table: AnswerTable, row: str, families: Sequence[str]) -> dict[str, Any]:
    """Return `{"value", "ci95"}` of a row's mean over families and seeds; the interval covers pages and seeds."""
    n = table.rows.index(row)
    scores, resampled = table.mean(families)
    return _with_ci(scores[n].mean(), _over_seeds(table, resampled[:, n]))


def recovered(
    table: AnswerTable, row: str, *, compressed: str, uncompressed: str, fine: Sequence[str]
) -> dict[str, Any]:
    """Return `{"mean", "ci95"}` of what a row recovered, or nulls with the `reason`."""
    r, c, u = (table.rows.index(name) for name in (row, compressed, uncompressed))
    scores, resampled = table.mean(fine)
    gain, lead = (scores[r] - scores[c]).mean(), (scores[u] - scores[c]).mean()
    result: dict[str, Any] = {
        "mean": None,
        "ci95": None,
        "compressed": compressed,
        "uncompressed": uncompressed,
        "lead": float(lead),
    }
    if lead < MINIMUM_LEAD - _ROUNDING:
        why = f"{uncompressed} leads {compressed} by {100 * lead:.1f} points, less than {100 * MINIMUM_LEAD:.0f}"
        return {**result, "reason": why}
    ends = bootstrap.ratio_interval(
        _over_seeds(table, resampled[:, r] - resampled[:, c]), _over_seeds(table, resampled[:, u] - resampled[:, c])
    )
    result |= {"mean": float(gain / lead), "ci95": list(ends) if ends else None}
    return result if ends else {**result, "reason": "the lead is not above zero in more than 2.5 % of the resamples"}


def recovered_on_average(
    table: AnswerTable, twins: Mapping[str, str], *, uncompressed: str, fine: Sequence[str]
) -> dict[str, Any]:
    """Return `{"mean", "ci95", "rows", "left_out"}` of the mean recovery of several rows, or nulls where none of them has one.

    A row whose recovery is not defined is left out by that rule alone, and named with the reason.

    Args:
        table: the answers.
        twins: the compressed row of every row.
        uncompressed: the reference.
        fine: families.
    """
    each = {
        row: recovered(table, row, compressed=twin, uncompressed=uncompressed, fine=fine) for row, twin in twins.items()
    }
    left_out = {row: one["reason"] for row, one in each.items() if one["ci95"] is None}
    rows = [row for row in twins if row not in left_out]
    result: dict[str, Any] = {"mean": None, "ci95": None, "rows": rows, "left_out": left_out}
    if not rows:
        return result
    _, resampled = table.mean(fine)
    ratios = []
    for row in rows:
        r, c, u = (table.rows.index(name) for name in (row, twins[row], uncompressed))
        gain, lead = (_over_seeds(table, resampled[:, x] - resampled[:, c]) for x in (r, u))
        ratios.append(np.divide(gain, lead, out=np.zeros_like(gain), where=lead > 0))
    spread = bootstrap.interval(np.mean([each[row]["mean"] for row in rows]), np.mean(ratios, axis=0))
    return {**result, "mean": spread.value, "ci95": [spread.low, spread.high]}


def difference(table: AnswerTable, row: str, other: str, families: Sequence[str]) -> dict[str, Any]:
    """Return `{"row", "other", "difference", "ci95"}`: how much better a row is than another one on some families."""
    r, o = table.rows.index(row), table.rows.index(other)
    scores, resampled = table.mean(families)
    spread = bootstrap.interval((scores[r] - scores[o]).mean(), _over_seeds(table, resampled[:, r] - resampled[:, o]))
    return {"row": row, "other": other, "difference": spread.value, "ci95": [spread.low, spread.high]}


def layout_difference(table: AnswerTable, row: str, *, compressed: str, coarse: Sequence[str]) -> dict[str, Any]:
    """Return `{"difference", "ci95", "n", "not_hurt"}` of a row against its compressed twin on the coarse families.

    `n` counts paired questions, each once however many seeds answered it; below 1,000 `not_hurt` is null, with the `reason`.
    """
    paired = difference(table, row, compressed, coarse)
    questions = sum(table.families[family].num_questions for family in coarse)
    result = {"difference": paired["difference"], "ci95": paired["ci95"], "n": questions, "compressed": compressed}
    if questions < LAYOUT_QUESTIONS:
        return {**result, "not_hurt": None, "reason": f"{questions} questions, at least {LAYOUT_QUESTIONS} are needed"}
    return {**result, "not_hurt": bool(paired["difference"] >= -LAYOUT_TOLERANCE - _ROUNDING)}


def _family_table(scores: Floats, pages: Sequence[str], *, key: str) -> FamilyTable:
    """scores float[Q, N, S] of Q questions -> the family's table; questions of one page are drawn together."""
    num_questions, num_rows, num_seeds = scores.shape
    order = {page: u for u, page in enumerate(dict.fromkeys(pages))}
    place = np.array([order[page] for page in pages])
    sums = np.zeros((len(order), num_rows * num_seeds))
    np.add.at(sums, place, scores.reshape(num_questions, -1))
    resampled = bootstrap.resampled_means(sums, np.bincount(place).astype(np.float64), key=key)
    return FamilyTable(
        scores=scores.mean(axis=0), resampled=resampled.reshape(-1, num_rows, num_seeds), num_questions=num_questions
    )


def _over_seeds(table: AnswerTable, resampled: Floats) -> Floats:
    """Resamples float[R, S] -> float[R]: the mean over seeds, spread as Student says, on the pages that all of them answered."""
    weights = bootstrap.seed_weights(len(table.seeds), resamples=len(resampled))
    return (resampled * weights).sum(axis=1)


def _with_ci(value: float, resampled: Floats) -> dict[str, Any]:
    spread = bootstrap.interval(value, resampled)
    return {"value": spread.value, "ci95": [spread.low, spread.high]}
