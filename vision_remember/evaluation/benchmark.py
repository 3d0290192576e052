"""What a published benchmark adds to a task: several gold answers, a metric of its own, and totals that are not plain means.

A benchmark is a task file that defines, besides `Config` and `questions`,

    score(prediction, item) -> float          what one answer is worth, in [0, 1]; the docstring quotes the definition
    totals(scored) -> {name: value}           what papers print, the headline first; in per cent where the file says nothing else
    MAX_NEW_TOKENS                            the longest answer

The metrics are the published ones, in the reading of lmms-eval 0.7.3 where evaluation codes differ; they are compared with its functions
in `tests/evaluation/test_lmms_eval.py`. No benchmark asks another model to judge.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vision_remember.data.images import DEFAULT_LIMITS, ImageError, decode_image
from vision_remember.data.schema import ImageFile, ImageRef
from vision_remember.data.tables import Row, read_table
from vision_remember.evaluation.summary import mean_over_seeds, row_scores, tabulate
from vision_remember.model.chat import first_question
from vision_remember.model.engine import Request

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER_ANSWER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True, kw_only=True)
class LocalCopy:
    """Options of every benchmark.

    Attributes:
        path: folder or file of the copy; its layouts are in `data/tables.py`.
        limit: the first questions only, to try a command; None takes all.
    """

    path: str
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is at least 1, got {self.limit}; leave it out for all questions")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question of a benchmark.

    Attributes:
        id: unique within the benchmark.
        page: names the picture, or what else is resampled as one.
        family: the group its score is reported in.
        text: the words the model receives, instructions included.
        answers: accepted answers.
        picture: reads the reference of the picture.
        facts: what `score` and `totals` need to know besides, as text.
    """

    id: str
    page: str
    family: str
    text: str
    answers: tuple[str, ...]
    picture: Callable[[], ImageRef]
    facts: Mapping[str, str] = field(default_factory=dict)

    def request(self) -> Request:
        """What the engine is asked.

        Raises:
            ValueError: the picture is missing or broken; names the question.
        """
        reference = self.picture()
        try:
            data = reference.read(max_bytes=DEFAULT_LIMITS.max_bytes) if isinstance(reference, ImageFile) else reference
            return Request(first_question(self.text, num_images=1), [decode_image(data)])
        except ImageError as error:
            raise ValueError(f"question {self.id}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A question, what the model said, and what it is worth; a line of the answers file."""

    id: str
    page: str
    family: str
    question: str
    answers: tuple[str, ...]
    prediction: str
    score: float
    facts: Mapping[str, str]


def read_items(config: LocalCopy, split: str, read: Callable[[Row], Item]) -> list[Item]:
    """Return the questions of a local copy.

    Args:
        config: where it is.
        split: the split of the Hub data set that has gold answers.
        read: makes a question of a row.

    Raises:
        ValueError: the copy cannot be read, a row lacks a column, or two questions have one id.
    """
    items: dict[str, Item] = {}
    for row in read_table(config.path, split=split):
        if len(items) == config.limit:
            break
        item = read(row)
        if item.id in items:
            raise ValueError(f"{row.where}: a second question has the id {item.id!r}; are two splits in one folder?")
        items[item.id] = item
    return list(items.values())


def scored_answer(item: Item, prediction: str, score: Callable[[str, Item], float]) -> Scored:
    """Return the scored record of one answer; blanks around it do not count."""
    said = prediction.strip()
    return Scored(
        id=item.id,
        page=item.page,
        family=item.family,
        question=item.text,
        answers=item.answers,
        prediction=said,
        score=float(score(said, item)),
        facts=item.facts,
    )


def score_benchmark(scored: Sequence[Scored], split: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the mean score per family and over all questions, with intervals over pictures."""
    families = row_scores(tabulate({("model", 0): scored}, split, "score"), "model", 0)
    together = tabulate({("model", 0): [replace(one, family="all") for one in scored]}, split, "score")
    return families, mean_over_seeds(together, "model", ["all"])


def percent(scored: Sequence[Scored]) -> float:
    """Return the mean score in per cent."""
    return 100 * sum(one.score for one in scored) / len(scored)


def percent_by_family(scored: Sequence[Scored]) -> Iterator[tuple[str, float]]:
    """Yield the mean score of each family in per cent, sorted by name."""
    groups = defaultdict(list)
    for one in scored:
        groups[one.family].append(one)
    return ((family, percent(groups[family])) for family in sorted(groups))
