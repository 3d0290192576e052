import dataclasses
import io

from PIL import Image

from vision_remember.evaluation.records import score_answer
from vision_remember.evaluation.specimens import PER_FAMILY, choose
from vision_remember.evaluation.tasks import load_task


def test_pages_on_which_rows_disagree_are_shown_first_and_each_page_once() -> None:
    questions = load_task({"type": "synthetic_documents", "count": 8, "families": ["text", "form"], "questions": 2})
    disputed = {questions[-1].id, questions[-2].id, questions[4].id}  # the last form page twice, and a text page
    answers = {"sure": [_answer(question, True) for question in questions]}
    answers["unsure"] = [_answer(question, question.id not in disputed) for question in questions]
    shown = choose(questions, answers)
    assert [specimen.family for specimen in shown] == ["text"] * PER_FAMILY + ["form"] * PER_FAMILY
    assert [specimen.predictions["unsure"][1] for specimen in shown] == [False, True, False, True]
    assert shown[0].question == questions[4].text and shown[2].question == questions[-2].text
    assert len({specimen.png for specimen in shown}) == 4


def test_a_specimen_shows_the_page_as_it_is_and_where_the_answer_stands() -> None:
    questions = load_task({"type": "synthetic_documents", "count": 1, "families": ["table"], "questions": 1})
    [specimen] = choose(questions, {"one": [_answer(questions[0], False)]})
    page = questions[0].request().images[0]
    assert Image.open(io.BytesIO(specimen.png)).tobytes() == page.tobytes()
    assert specimen.size == page.size and specimen.evidence == questions[0].evidence
    assert specimen.predictions == {"one": ("wrong", False)}


def test_a_question_without_an_image_is_not_shown() -> None:
    [question] = load_task({"type": "synthetic_documents", "count": 1, "questions": 1})
    turns = tuple(
        dataclasses.replace(turn, parts=tuple(part for part in turn.parts if isinstance(part, str)))
        for turn in question.sample.turns
    )
    question = dataclasses.replace(question, sample=dataclasses.replace(question.sample, images=(), turns=turns))
    assert choose([question], {"one": [_answer(question, True)]}) == []


def _answer(question, right: bool):
    facts = {name: getattr(question, name) for name in ("id", "page", "family", "answers")}
    return score_answer(**facts, question=question.text, prediction=question.answers[0] if right else "wrong")
