"""Synthetic pages: same name same bytes, splits disjoint by construction, answers that stand where the evidence says."""

import random

import numpy as np
import pytest

from vision_remember.data.synthetic import FINE, families, make_page
from vision_remember.data.synthetic.canvas import CELL, SEEN_FONTS, SIDE, UNSEEN_FONTS, UNSEEN_SIZES, Canvas
from vision_remember.data.synthetic.content import Content

SPLITS = ("train", "test", "shift")


def test_every_family_of_the_folder_is_found():
    assert set(FINE) < set(families())
    assert "layout" in families()


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("split", SPLITS)
def test_same_name_gives_same_bytes_and_questions(family, split):
    first, second = (make_page(family, split, 3, 11) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert first.questions == second.questions
    assert first.image.tobytes() != make_page(family, split, 4, 11).image.tobytes()


@pytest.mark.parametrize("family", families())
def test_every_page_asks_and_its_evidence_lies_on_the_page(family):
    for index in range(60):
        page = make_page(family, "train", 0, index)
        assert page.image.size == (SIDE * CELL, SIDE * CELL) and page.image.mode == "RGB"
        assert page.questions
        for question in page.questions:
            x0, y0, x1, y1 = question.evidence
            assert 0 <= x0 < x1 <= SIDE * CELL and 0 <= y0 < y1 <= SIDE * CELL
            assert question.question and question.answer


@pytest.mark.parametrize("family", ["text", "table", "form"])
def test_the_answer_is_written_in_the_cells_of_its_evidence(family):
    for index in range(60):
        page = make_page(family, "test", 0, index)
        for question in page.questions:
            x0, y0, x1, y1 = question.evidence
            row, first, last = round((y0 + y1) / 2) // CELL, round(x0 / CELL), round(x1 / CELL)
            assert question.answer in " ".join(page.text[row][max(0, first - 1) : last + 1].split())


def test_no_question_on_one_page_has_two_answers():
    for family in families():
        for index in range(200):
            answers: dict[str, str] = {}
            for question in make_page(family, "train", 5, index).questions:
                assert answers.setdefault(question.question.upper(), question.answer) == question.answer


def test_words_codes_and_long_numbers_of_train_and_test_never_meet():
    drawn = {}
    for split in ("train", "test"):
        content = Content(random.Random(0), split)
        drawn[split] = {content.word(4) for _ in range(500)} | {content.code(3) for _ in range(500)}
        drawn[split] |= {content.number(3) for _ in range(300)} | {content.amount() for _ in range(300)}
    assert not drawn["train"] & drawn["test"]


def test_only_shift_pages_use_unseen_fonts():
    for seed in range(40):
        assert Canvas(random.Random(seed), shift=False).font in SEEN_FONTS
        shifted = Canvas(random.Random(seed), shift=True)
        assert shifted.font in UNSEEN_FONTS and shifted.size in UNSEEN_SIZES
    assert not set(SEEN_FONTS) & set(UNSEEN_FONTS)


def test_cells_say_what_is_drawn():
    canvas = Canvas(random.Random(0), shift=False)
    paper = np.asarray(canvas.image).copy()
    canvas.write(2, 3, "A1")
    changed = np.argwhere((np.asarray(canvas.image) != paper).any(-1))
    x0, y0, x1, y1 = canvas.box(2, 3, 2)
    assert changed[:, 0].min() >= y0 and changed[:, 0].max() < y1
    assert changed[:, 1].min() >= x0 and changed[:, 1].max() < x1
    assert canvas.as_text()[2] == "   A1       "


def test_text_that_leaves_the_page_is_refused_with_the_numbers():
    canvas = Canvas(random.Random(0), shift=False)
    with pytest.raises(ValueError, match="row 0, column 10"):
        canvas.write(0, 10, "TOTAL")


def test_an_unknown_family_or_split_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="layout"):
        make_page("poem", "train", 0, 0)
    with pytest.raises(ValueError, match="shift"):
        make_page("text", "valid", 0, 0)


def test_exercises_agree_with_the_questions_of_their_page():
    for index in range(40):
        page = make_page("table", "train", 0, index)
        asked = {question.question: question.answer for question in page.exercises}
        for question in page.questions:
            words = question.question.rstrip("?.").replace(",", "").split()
            if "column" in words:
                row, column = words[words.index("row") + 1].upper(), words[words.index("column") + 1].upper()
                assert f"{column} {question.answer}" in asked[f"Read row {row} with its columns."]
                assert f"{row} {question.answer}" in asked[f"Read column {column} with its rows."]
        page = make_page("chart", "train", 0, index)
        asked = {question.question: question.answer for question in page.exercises}
        for question in page.questions:
            if "largest" in question.question:
                assert asked["Sort the names from large to small."].startswith(question.answer)


def test_exercises_are_no_questions():
    pages = [make_page(family, "test", 0, 0) for family in families()]
    assert all(question.level == 0 for page in pages for question in page.questions)
    assert all(question.level > 0 for page in pages for question in page.exercises)
