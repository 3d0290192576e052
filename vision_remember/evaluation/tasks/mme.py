"""MME: two yes-or-no questions about every picture, one of each answer; ten kinds of perception, four of cognition.

Accuracy counts questions, accuracy+ pictures whose two questions are both answered rightly; the score of a kind is the sum of the two in
per cent, and the headlines are sums over kinds: perception out of 2,000 and cognition out of 800, **points, not per cent**. An answer says
yes or no in its first four letters.

Source: Fu et al., "MME" (arXiv 2306.13394); `lmms_eval.tasks.mme.utils`, split test.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from vision_remember.data.tables import Row
from vision_remember.evaluation.benchmark import SHORT_ANSWER, Item, LocalCopy, Scored, read_items

MAX_NEW_TOKENS = 16
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
OWN_INSTRUCTION = " Please answer yes or no."
Config = LocalCopy


def questions(config: LocalCopy) -> list[Item]:
    """Return the questions in order; families are the kinds of question.

    Raises:
        ValueError: a picture has another number of questions than two.
    """
    items = read_items(config, "test", _item)
    for page, count in Counter(item.page for item in items).items():
        if count != 2:
            raise ValueError(
                f"MME asks two questions about {page}, {count} were read; give an even limit, or copy all rows"
            )
    return items


def score(prediction: str, item: Item) -> float:
    """Return 1.0 for the gold `yes` or `no`."""
    return float(_word(prediction) == item.answers[0])


def totals(scored: Sequence[Scored]) -> dict[str, float]:
    """Return perception and cognition in points, as far as kinds of theirs were asked, and the points of every kind."""
    pictures: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in scored:
        pictures[one.family][one.page].append(one.score)
    points = {}
    for family, scores in sorted(pictures.items()):
        points[family] = sum(50 * sum(pair) + 100 * (sum(pair) == 2) for pair in scores.values()) / len(scores)
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for family, value in points.items():
        parts["cognition" if family in COGNITION else "perception"].append(value)
    return {part: sum(parts[part]) for part in ("perception", "cognition") if part in parts} | points


def _word(text: str) -> str:
    said = text.lower().strip().replace(".", "")
    if len(said) == 1:
        return {"y": "yes", "n": "no"}.get(said, "")
    return next((word for word in ("yes", "no") if word in said[:4]), "")


def _item(row: Row) -> Item:
    question = row.text("question").strip().replace(OWN_INSTRUCTION, "")
    answer, category = row.text("answer").lower().strip().replace(".", ""), row.text("category")
    page = f"{category}/{row.text('question_id', 'image_path')}"
    return Item(
        id=f"{page}#{row.number}",
        page=page,
        family=category,
        text=question + SHORT_ANSWER,
        answers=(answer,),
        picture=row.image,
    )
