"""Ask a model a task's questions, greedily and in batches, and keep answers, prompts, versions and scores together.

The engine is the one that `ask` and serving use, so a score is about what a user gets. Answers do not depend on the batch size.
"""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vision_remember.evaluation import bootstrap
from vision_remember.evaluation.benchmark import Item, Scored, score_benchmark, scored_answer
from vision_remember.evaluation.commit import source_commit
from vision_remember.evaluation.records import Record, score_answer, write_answers, write_json
from vision_remember.evaluation.summary import mean_over_seeds, row_scores, tabulate
from vision_remember.evaluation.tasks import Question, benchmark, load_benchmark, load_task
from vision_remember.model.engine import Engine

BATCH_SIZE = 32
MAX_NEW_TOKENS = 32
PACKAGES = ("torch", "transformers", "tokenizers", "pillow", "numpy", "anls")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The outcome of one model on one task.

    Attributes:
        records: every answer, in the order of the task.
        scores: `{family: {"value", "ci95", "n", "anls": {"value", "ci95"}}}`, fractions; a benchmark has one metric and no `anls`.
        mean: `{"value", "ci95"}`, the plain mean over families; of a benchmark, over questions.
        totals: what papers print about a benchmark, the headline first; empty for other tasks.
        about: the model, the task, one prompt as the model received it, the generation settings, the commit and the versions.
    """

    records: list[Record] | list[Scored]
    scores: dict[str, dict[str, Any]]
    mean: dict[str, Any]
    totals: dict[str, float]
    about: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Scores and what they are about, without the answers."""
        return {"totals": self.totals, "mean": self.mean, "scores": self.scores, **self.about}

    def save(self, out: Path) -> None:
        """Write `answers.jsonl` and `scores.json` into a folder."""
        write_answers(out / "answers.jsonl", self.records)
        write_json(out / "scores.json", self.to_dict())


def evaluate(
    model: str | Path | Engine,
    task: Mapping[str, Any],
    *,
    out: Path | None = None,
    batch_size: int = BATCH_SIZE,
    max_new_tokens: int | None = None,
    console: Console | None = None,
    tokens_per_image: int | None = None,
) -> Evaluation:
    """Score a model on a task.

    Args:
        model: model folder, hub id, or a loaded engine.
        task: `{"type": "synthetic_documents", "count": 1000, "split": "test"}` or `{"type": "chartqa", "path": "copies/chartqa"}`; the
            options are those of the task's file.
        out: folder for answers and scores; None keeps them in memory.
        batch_size: prompts per batch.
        max_new_tokens: longest answer; None takes the task's own.
        console: where progress is shown; None shows none.
        tokens_per_image: vision tokens of an image, where `model` is a folder; None takes what its projector makes by itself.

    Raises:
        ValueError: an unknown task or option, a task without questions, or a sample that cannot be used (by name).
    """
    module = benchmark(task["type"])
    own = module.MAX_NEW_TOKENS if module else MAX_NEW_TOKENS
    longest = own if max_new_tokens is None else max_new_tokens
    split = "/".join(str(task[key]) for key in ("type", "split") if key in task)
    questions: Sequence[Any] = load_benchmark(task) if module else load_task(task)
    engine = model if isinstance(model, Engine) else Engine.load(str(model), tokens_per_image=tokens_per_image)
    said = ask(engine, questions, batch_size=batch_size, max_new_tokens=longest, console=console, label=task["type"])
    records: list[Any]
    totals: dict[str, float] = {}
    if module:
        records = [scored_answer(item, text, module.score) for item, text in zip(questions, said, strict=True)]
        scores, mean = score_benchmark(records, split)
        totals = module.totals(records)
    else:
        records = [_record(question, text) for question, text in zip(questions, said, strict=True)]
        scores, mean = score_families(records, split)
    evaluation = Evaluation(
        records=records,
        scores=scores,
        mean=mean,
        totals=totals,
        about={
            "model": None if isinstance(model, Engine) else str(model),
            "architecture": _architecture(engine),
            "task": dict(task),
            **({"definition": module.__doc__.strip()} if module and module.__doc__ else {}),
            "questions": len(records),
            "prompt": prompt_text(engine, questions[0]),
            "generation": {"greedy": True, "batch_size": batch_size, "max_new_tokens": longest},
            "bootstrap": {"resamples": bootstrap.RESAMPLES, "unit": "page"},
            "commit": source_commit(),
            "versions": versions(),
        },
    )
    if out is not None:
        evaluation.save(out)
    return evaluation


def answer_questions(
    engine: Engine,
    questions: Sequence[Question],
    *,
    batch_size: int = BATCH_SIZE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    console: Console | None = None,
    label: str = "asking",
) -> list[Record]:
    """Return a scored record for every question, in order; only one batch of images is in memory at a time."""
    said = ask(engine, questions, batch_size=batch_size, max_new_tokens=max_new_tokens, console=console, label=label)
    return [_record(question, text) for question, text in zip(questions, said, strict=True)]


def ask(
    engine: Engine,
    questions: Sequence[Question] | Sequence[Item],
    *,
    batch_size: int = BATCH_SIZE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    console: Console | None = None,
    label: str = "asking",
) -> list[str]:
    """Return the greedy answer to every question, in order; only one batch of images is in memory at a time."""
    said: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None, transient=True) as progress:
        bar = progress.add_task(label, total=len(questions))
        for start in range(0, len(questions), batch_size):
            requests = [question.request() for question in questions[start : start + batch_size]]
            answers = engine.answer(requests, max_new_tokens=max_new_tokens, batch_size=batch_size)
            said += [answer.text for answer in answers]
            progress.advance(bar, len(answers))
    return said


def score_families(records: Sequence[Record], split: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return scores per family (exact match, and ANLS inside) and the mean over families, with intervals."""
    exact, similar = (tabulate({("model", 0): records}, split, metric) for metric in ("exact_match", "anls"))
    scores = row_scores(exact, "model", 0)
    for family, score in row_scores(similar, "model", 0).items():
        scores[family]["anls"] = {"value": score["value"], "ci95": score["ci95"]}
    return scores, mean_over_seeds(exact, "model", list(scores))


def prompt_text(engine: Engine, question: Question | Item) -> str:
    """Return the prompt of one question as the model receives it, with the image placeholders counted."""
    request = question.request()
    encoding = engine.processor.encode(request.messages, request.images, add_generation_prompt=True)
    text = engine.processor.tokenizer.decode(encoding.input_ids)
    slot = engine.processor.image_token
    return re.sub(f"(?:{re.escape(slot)}\\s*)+", lambda run: f"{slot} x {run[0].count(slot)}\n", text)


def versions() -> dict[str, str]:
    """Return the versions a score depends on."""
    found = {name: version(name) for name in PACKAGES}
    return {"vision-remember": _own_version(), "python": platform.python_version(), **found}


def _architecture(engine: Engine) -> dict[str, Any]:
    config = engine.model.config
    tokens = engine.token_grid.num_cells
    return {"projector": dict(config.projector), "refusion": dict(config.refusion), "tokens": tokens}


def _own_version() -> str:
    try:
        return version("vision-remember")
    except PackageNotFoundError:
        return "run from its sources"


def _record(question: Question, prediction: str) -> Record:
    facts = {name: getattr(question, name) for name in ("id", "page", "family", "answers")}
    return score_answer(**facts, question=question.text, prediction=prediction)
