"""`results.json`: what every row scored, and what the comparison says. The same answers give the same file, timings apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vision_remember.evaluation import bootstrap
from vision_remember.evaluation.plan import Comparison
from vision_remember.evaluation.records import Record
from vision_remember.evaluation.summary import (
    LAYOUT_QUESTIONS,
    LAYOUT_TOLERANCE,
    MINIMUM_LEAD,
    AnswerTable,
    difference,
    layout_difference,
    mean_over_seeds,
    recovered,
    recovered_on_average,
    row_scores,
    tabulate,
)

Answers = Mapping[tuple[str, int], Sequence[Record]]

DEFINITIONS = {
    "units": "scores are fractions of 1; one point is 0.01",
    "value": "exact match, blanks aside; anls beside it is the average normalised Levenshtein similarity with threshold 0.5",
    "mean": "plain mean of the fine families",
    "recovered": "(row - compressed) / (uncompressed - compressed), a ratio of fine-family means over all seeds; compressed is the row "
    "with the same projector, tokens and overrides and no re-fusion, uncompressed the reference; "
    f"null where the reference leads by less than {100 * MINIMUM_LEAD:.0f} points",
    "averages": "mean of recovered over the named rows, taken in every resample; rows for which it is null are left out",
    "differences": "paired difference row - other of the mean of the fine families",
    "layout": "paired difference row - compressed on the coarse families; not hurt when it is at least "
    f"-{100 * LAYOUT_TOLERANCE:.0f} point on at least {LAYOUT_QUESTIONS:,} questions",
    "ci95": f"2.5 and 97.5 percentiles of {bootstrap.RESAMPLES:,} paired resamples of pages; in the summary the mean over seeds "
    "spreads in them as Student's t says",
    "prefill_ms": "median time of encoder, projector and decoder for one page and question, rows measured in turns",
    "prefill_flops": "of the same prompt, counted by shapes: matrix products and convolutions, a multiply-add being two",
}


@dataclass(frozen=True, kw_only=True)
class TrainedRow:
    """What training one row with one seed left behind, besides its answers.

    Attributes:
        tokens: vision tokens per page.
        trainable_parameters: weights that were trained.
        train_seconds: time the training took.
        device: what it was trained on, "CPU" or the name of a GPU; None where the row does not say.
        curve: `{"step": [...], "loss": [...]}`.
        start: how the model it started from was trained, `{"checkpoint", "recipe", "seed", "steps", "samples", "curve"}`; None where it
            does not say.
    """

    tokens: int
    trainable_parameters: int
    train_seconds: float
    curve: dict[str, list[float]]
    device: str | None = None
    start: dict[str, Any] | None = None


def build_results(
    comparison: Comparison,
    trained: Mapping[tuple[str, int], TrainedRow],
    answers: Mapping[str, Answers],
    cost: Mapping[str, Mapping[str, float]],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of `results.json`.

    Args:
        comparison: the plan.
        trained: every (row name, seed).
        answers: records of every (row name, seed), by split.
        cost: `{"prefill_ms", "prefill_flops"}` by row name.
        about: command, budget, versions: whatever explains the numbers.
    """
    exact = {split: tabulate(records, split) for split, records in answers.items()}
    similar = {split: tabulate(records, split, "anls") for split, records in answers.items()}
    summaries = {split: _summary(comparison, table) for split, table in exact.items()}
    first, *others = comparison.evaluation.splits
    return {
        "name": comparison.name,
        "reference": comparison.reference,
        "fine": list(comparison.evaluation.fine),
        "coarse": list(comparison.evaluation.coarse),
        "apart": {row.name: row.apart for row in comparison.rows if row.apart is not None},
        **about,
        "definitions": DEFINITIONS,
        "rows": [
            _row(comparison, name, seed, split, exact[split], similar[split], trained[name, seed], cost[name])
            for split in exact
            for name, seed in trained
        ],
        "summary": {"split": first, **summaries[first], "other_splits": {split: summaries[split] for split in others}},
        "curves": {
            row.name: {str(seed): one.curve for (name, seed), one in trained.items() if name == row.name}
            for row in comparison.rows
        },
        "starts": {name: one.start for (name, _), one in trained.items() if one.start},
    }


def _row(
    comparison: Comparison,
    name: str,
    seed: int,
    split: str,
    exact: AnswerTable,
    similar: AnswerTable,
    trained: TrainedRow,
    cost: Mapping[str, float],
) -> dict[str, Any]:
    plan = next(row for row in comparison.rows if row.name == name)
    scores = row_scores(exact, name, seed)
    for family, score in row_scores(similar, name, seed).items():
        scores[family]["anls"] = {"value": score["value"], "ci95": score["ci95"]}
    fine = [scores[family]["value"] for family in comparison.evaluation.fine]
    return {
        "name": name,
        "projector": plan.projector["type"],
        "refusion": plan.refusion["type"],
        "tokens": trained.tokens,
        "seed": seed,
        "split": split,
        "scores": scores,
        "mean": sum(fine) / len(fine),
        "trainable_parameters": trained.trainable_parameters,
        "train_seconds": trained.train_seconds,
        "device": trained.device,
        **cost,
        "projector_options": plan.projector,
        "refusion_options": plan.refusion,
        "checkpoint": plan.checkpoint,
        "overrides": plan.overrides,
    }


def _summary(comparison: Comparison, table: AnswerTable) -> dict[str, Any]:
    fine, coarse = comparison.evaluation.fine, comparison.evaluation.coarse
    summary: dict[str, Any] = {"recovered": {}, "layout": {}, "means": {}, "families": {}}
    for row in comparison.rows:
        summary["means"][row.name] = mean_over_seeds(table, row.name, fine)
        summary["families"][row.name] = {
            family: {**mean_over_seeds(table, row.name, [family]), "n": table.families[family].num_questions}
            for family in table.families
        }
        if row.refusion["type"] == "none":
            continue
        compressed = comparison.compressed_twin(row)
        if compressed is None:
            reason = "no row is the same but for re-fusion"
            summary["recovered"][row.name] = {"mean": None, "ci95": None, "reason": reason}
            continue
        summary["recovered"][row.name] = recovered(
            table, row.name, compressed=compressed, uncompressed=comparison.reference, fine=fine
        )
        if coarse:
            summary["layout"][row.name] = layout_difference(table, row.name, compressed=compressed, coarse=coarse)
    return summary | {
        "differences": [difference(table, row, other, fine) for row, other in comparison.differences],
        "averages": {
            title: recovered_on_average(table, comparison.twins(names), uncompressed=comparison.reference, fine=fine)
            for title, names in comparison.averages.items()
        },
    }
