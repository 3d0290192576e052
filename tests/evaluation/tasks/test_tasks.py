"""Each benchmark's metric and prompt by example; agreement with lmms-eval on generated answers is in `../test_lmms_eval.py`."""

import json
import re
from pathlib import Path

import pytest

from tests.evaluation import copies
from vision_remember.evaluation.benchmark import Item, Scored, scored_answer
from vision_remember.evaluation.tasks import benchmark, load_benchmark
from vision_remember.evaluation.tasks.choice import chosen_letter


def _worth(name: str, said: str, *answers: str, **facts: str) -> float:
    item = Item(id="1", page="1", family="all", text="?", answers=answers, picture=bytes, facts=facts)
    return scored_answer(item, said, benchmark(name).score).score


def _scored(
    name: str, given: list[tuple[str, str]], *, family: str = "all", pages: int = 1, **facts: str
) -> list[Scored]:
    """Scored records of (said, gold); `pages` questions in a row are about one page."""
    return [
        scored_answer(
            Item(id=str(n), page=str(n // pages), family=family, text="?", answers=(gold,), picture=bytes, facts=facts),
            said,
            benchmark(name).score,
        )
        for n, (said, gold) in enumerate(given)
    ]


@pytest.mark.parametrize(
    ("name", "said", "answers", "worth"),
    [
        ("gqa", " Yes. ", ["yes"], 1.0),
        ("gqa", "yes it is", ["yes"], 0.0),
        ("textvqa", "The Red.", ["red"] * 3 + ["blue"] * 7, 0.9),
        ("textvqa", "red", ["red"] * 4 + ["blue"] * 6, 1.0),
        ("textvqa", "two", ["2"] * 10, 1.0),
        ("vqav2", "isnt", ["isn't"] * 10, 1.0),
        ("vqav2", "red-brown", ["red brown"] * 10, 1.0),
        ("vqav2", "1,000", ["1000"] * 10, 1.0),
        ("docvqa", "ab", ["ax"], 0.5),
        ("docvqa", "abc", ["axx"], 0.0),
        ("docvqa", "$ 42", ["42", "$ 42"], 1.0),
        ("infovqa", "Twelve ", ["twelve"], 1.0),
        ("chartqa", "42", ["40"], 1.0),
        ("chartqa", "42.1", ["40"], 0.0),
        ("chartqa", "12%", ["0.12"], 1.0),
        ("chartqa", "0.0", ["0"], 0.0),
        ("chartqa", "blue", ["Blue"], 1.0),
        ("ai2d", "B. root", ["B"], 1.0),
        ("ai2d", "(b)", ["B"], 1.0),
        ("ai2d", "the root", ["B"], 0.0),
        ("pope", "Yes", ["yes"], 1.0),
        ("pope", "Yes, there is", ["yes"], 0.0),
        ("mme", "Yes, there is", ["yes"], 1.0),
        ("mme", "N.", ["no"], 1.0),
        ("mme", "maybe", ["no"], 0.0),
    ],
)
def test_what_an_answer_is_worth(name: str, said: str, answers: list[str], worth: float) -> None:
    assert _worth(name, said, *answers) == pytest.approx(worth)


def test_ocrbench_looks_for_the_gold_answer_and_spares_formulas_their_case() -> None:
    assert _worth("ocrbench", "It says HELLO\nWORLD", "hello world", dataset="IIIT5K") == 1.0
    assert _worth("ocrbench", "Ｋ７ｂ", "k7b", dataset="IIIT5K") == 1.0
    assert _worth("ocrbench", "x^2 + y", "x ^ 2", dataset="HME100k") == 1.0
    assert _worth("ocrbench", "X^2", "x^2", dataset="HME100k") == 0.0


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("(C).", "C"),
        ("The answer is D", "D"),
        ("B. a cat", "B"),
        ("First (A), but then C", "C"),
        ("It is a bird", ""),
        ("", ""),
    ],
)
def test_the_letter_an_answer_names(said: str, letter: str) -> None:
    assert chosen_letter(said, "ABCD") == letter


@pytest.mark.parametrize(("said", "worth"), [("B", 1.0), ("a cat", 1.0), ("A cat sits on it", 1.0), ("(A)", 0.0)])
def test_mmbench_reads_letters_and_the_words_of_choices(said: str, worth: float) -> None:
    assert _worth("mmbench", said, "B", choices='{"A": "a dog", "B": "a cat"}') == worth


def test_mmbench_counts_a_question_that_is_right_in_every_rotation(tmp_path: Path) -> None:
    path = str(copies.write_json(tmp_path / "copy", "mmbench"))
    items = load_benchmark({"type": "mmbench", "path": path})
    module = benchmark("mmbench")
    scored = [scored_answer(item, "A", module.score) for item in items]
    assert module.totals(scored) == {"circular": 50.0, "once": 100.0}
    assert items[2].text.startswith(
        "Look well. What is it? There are several options:\nA. a pan\nB. a pot\n\nAnswer with"
    )


def test_pope_counts_what_was_said() -> None:
    given = [("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no"), ("maybe", "yes")]
    totals = benchmark("pope").totals(_scored("pope", given))
    assert totals == pytest.approx({"f1": 50, "accuracy": 40, "precision": 50, "recall": 50, "said_yes": 40})


def test_mme_adds_accuracy_and_pairs() -> None:
    perception = _scored("mme", [("yes", "yes"), ("yes", "no")], family="OCR", pages=2)
    cognition = _scored("mme", [("yes", "yes"), ("no", "no")], family="code_reasoning", pages=2)
    totals = benchmark("mme").totals([*perception, *cognition])
    assert totals == {"perception": 50.0, "cognition": 200.0, "OCR": 50.0, "code_reasoning": 200.0}
    assert benchmark("mme").totals(perception) == {"perception": 50.0, "OCR": 50.0}  # nothing of cognition was asked


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "mme",
            {"limit": 3},
            "two questions about code_reasoning/code_reasoning/1.png, 1 were read; give an even limit",
        ),
        ("gqa", {"limit": 0}, "limit is at least 1, got 0"),
        ("gqa", {"limit": -1}, "limit is at least 1, got -1"),
        ("ai2d", {"answer": "99"}, "rows.json#0: the answer is '99', the choices are A, B"),
        ("ai2d", {"answer": "C"}, "rows.json#0: the answer is 'C', the choices are A, B"),
        ("mmstar", {"answer": "BC"}, "rows.json#0: the answer is 'BC'"),
        ("mmbench", {"index": "x1"}, "rows.json#0: index 'x1' is no number"),
        ("mmbench", {"index": 1_000_004, "limit": 1}, "no question of 1 has an index below 1,000,000"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_asked(tmp_path: Path, name, changes, said) -> None:
    folder = copies.write_json(tmp_path / "copy", name)
    options = {"limit": changes.pop("limit")} if "limit" in changes else {}
    rows = json.loads((folder / "rows.json").read_text())
    rows[0].update(changes)
    (folder / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=re.escape(said)):
        load_benchmark({"type": name, "path": str(folder), **options})


@pytest.mark.parametrize(("gold", "answer"), [("[2014, 2016]", "[2014, 2016]"), (["40", "41"], "40"), ("40", "40")])
def test_a_gold_answer_of_chartqa_that_looks_like_a_list_is_one_answer(tmp_path: Path, gold, answer: str) -> None:
    folder = copies.write_json(tmp_path / "copy", "chartqa")
    rows = json.loads((folder / "rows.json").read_text())
    rows[0]["answer"] = gold
    (folder / "rows.json").write_text(json.dumps(rows))
    assert load_benchmark({"type": "chartqa", "path": str(folder)})[0].answers == (answer,)


def test_mmstar_averages_parts() -> None:
    one = _scored("mmstar", [("A", "A"), ("A", "A"), ("A", "A")], part="one")
    two = _scored("mmstar", [("B", "A")], part="two")
    assert benchmark("mmstar").totals([*one, *two])["average"] == 50.0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("textvqa", "What is written?\nAnswer the question using a single word or phrase."),
        ("chartqa", "Value?\nAnswer the question with a single word."),
        ("ocrbench", "what is written?"),
        ("ai2d", "Which part?\nA. leaf\nB. root\nAnswer with the option's letter from the given choices directly."),
        ("mme", "Is it a dog?\nAnswer the question using a single word or phrase."),
        (
            "mmstar",
            "Which?\nOptions: A: one, B: two\nAnswer with the option's letter from the given choices directly",
        ),
    ],
)
def test_the_prompt_is_the_published_one(name: str, text: str, tmp_path: Path) -> None:
    item = load_benchmark({"type": name, "path": str(copies.write_json(tmp_path / "copy", name))})[0]
    assert item.text == text


def test_questions_about_one_picture_are_resampled_together(tmp_path: Path) -> None:
    items = load_benchmark({"type": "gqa", "path": str(copies.write_json(tmp_path / "copy", "gqa"))})
    assert [item.page for item in items] == ["n0", "n1", "n0"]


def test_ai2d_and_mmstar_read_vlmevalkit_tables(tmp_path: Path) -> None:
    row = {
        "question": "Which?",
        "A": "leaf",
        "B": "root",
        "C": "",
        "answer": "B",
        "category": "math",
        "l2_category": "x",
    }
    path = str(copies.write_tsv(tmp_path / "copy", [row, row]))
    for name in ("ai2d", "mmstar"):
        item = load_benchmark({"type": name, "path": path})[1]
        assert "\nA. leaf\nB. root\nAnswer" in item.text
        assert item.answers == ("B",)
        assert item.request().images[0].size == (6, 6)
