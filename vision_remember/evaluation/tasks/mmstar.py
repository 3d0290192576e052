"""MMStar: 1,500 multiple-choice questions that cannot be answered without the image; six abilities in eighteen parts.

Accuracy, as the plain mean over parts of the mean of each part. Which choice an answer means: `choice.chosen_letter`.

Source: Chen et al., "Are We on the Right Way for Evaluating Large Vision-Language Models?" (arXiv 2403.20330);
`lmms_eval.tasks.mmstar.utils`, split val.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from vision_remember.data.tables import Row
from vision_remember.evaluation.benchmark import LETTER_ANSWER, Item, LocalCopy, Scored, read_items
from vision_remember.evaluation.tasks.choice import chosen_letter, lettered, right_letter

MAX_NEW_TOKENS = 128
LETTERS = ("A", "B", "C", "D")
Config = LocalCopy


def questions(config: LocalCopy) -> list[Item]:
    """Return the questions in order; families are the abilities."""
    return read_items(config, "val", _item)


def score(prediction: str, item: Item) -> float:
    """Return 1.0 for the letter of the right choice."""
    return float(chosen_letter(prediction, LETTERS) == item.answers[0])


def totals(scored: Sequence[Scored]) -> dict[str, float]:
    """Return the mean over parts, of all and of each ability, in per cent."""
    families = sorted({one.family for one in scored})
    abilities = {family: _mean_of_parts(one for one in scored if one.family == family) for family in families}
    return {"average": _mean_of_parts(scored), **abilities}


def _mean_of_parts(scored: Iterable[Scored]) -> float:
    parts = defaultdict(list)
    for one in scored:
        parts[one.facts["part"]].append(one.score)
    return 100 * sum(sum(scores) / len(scores) for scores in parts.values()) / len(parts)


def _item(row: Row) -> Item:
    identity = row.identity("index", "id")
    choices = (
        "\n".join(["\nOptions:", *lettered(row.options)]) if row.options else ""
    )  # on the Hub they are in the question
    return Item(
        id=identity,
        page=row.page or identity,
        family=row.text("category"),
        text=f"{row.text('question').strip()}{choices}{LETTER_ANSWER.rstrip('.')}",
        answers=(right_letter(row),),
        picture=row.image,
        facts={"part": str(row.find("l2_category", "l2-category") or row.text("category"))},
    )
