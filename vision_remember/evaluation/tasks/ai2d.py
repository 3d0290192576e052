"""AI2D: multiple-choice questions about the diagrams of school books.

Accuracy: the answer is the letter of the right choice; a letter and a period at its start stand for the whole answer, case and punctuation
aside.

Source: Kembhavi et al., "A Diagram Is Worth A Dozen Images" (arXiv 1603.07396); `lmms_eval.tasks.ai2d` (`flexible-extract`), split test.
"""

import re
from collections.abc import Sequence

from vision_remember.data.tables import Row
from vision_remember.evaluation.benchmark import LETTER_ANSWER, Item, LocalCopy, Scored, percent, read_items
from vision_remember.evaluation.tasks.choice import lettered, right_letter
from vision_remember.evaluation.tasks.gqa import same_letters

MAX_NEW_TOKENS = 16
Config = LocalCopy


def questions(config: LocalCopy) -> list[Item]:
    """Return the questions in order."""
    return read_items(config, "test", _item)


def score(prediction: str, item: Item) -> float:
    """Return 1.0 for the letter of the right choice."""
    begun = re.match(r"\s*([A-Z])\.", prediction)
    return float(same_letters(begun[1] if begun else prediction, item.answers[0]))


def totals(scored: Sequence[Scored]) -> dict[str, float]:
    """Return the mean."""
    return {"accuracy": percent(scored)}


def _item(row: Row) -> Item:
    identity = row.identity("index", "id")
    choices = "\n".join(lettered(row.options))
    return Item(
        id=identity,
        page=row.page or identity,
        family="all",
        text=f"{row.text('question')}\n{choices}{LETTER_ANSWER}",
        answers=(right_letter(row),),
        picture=row.image,
    )
