"""Compares our metrics with lmms-eval's own functions on generated answers; run by `test_lmms_eval.py` in a process of its own.

Importing lmms-eval changes Pillow, logging and torch for the whole process, so it stays out of the tests'. Prints one JSON object:
`{benchmark: {"pairs", "different", "positive", "totals"}}`; `different` shows the first answers that score otherwise, `totals` the first
headline that does.
"""

import contextlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pandas
from lmms_eval.api.metrics import anls, exact_match_fn
from lmms_eval.tasks.ai2d.utils import MultiChoiceRegexFilter
from lmms_eval.tasks.chartqa.utils import chartqa_process_results
from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
from lmms_eval.tasks.mme import utils as mme
from lmms_eval.tasks.mmstar import utils as mmstar
from lmms_eval.tasks.ocrbench.utils import ocrbench_process_results
from lmms_eval.tasks.pope import utils as pope
from lmms_eval.tasks.textvqa.utils import textvqa_process_results
from lmms_eval.tasks.vqav2.utils import vqav2_process_results

from vision_remember.evaluation.benchmark import Item, Scored, scored_answer
from vision_remember.evaluation.tasks import benchmark

PAIRS = 1_000
WORDS = (
    "the a an none two ten 2 dont isnt he'd've couldnt've somebody'd it's 's Cat dog, banana red-brown 3.14 1,000 1,000,000 stop. e.g. "
    "(left) [right] $5 50% 0.5 yes no Yes. No, not? ... ; / Ｋ７ｂ 東京 é İstanbul ß \\frac{1}{2} x^2 a|b c|d"
).split()
WORDS = [word.replace("a|b", "a\nb").replace("c|d", "c\td") for word in WORDS] + ["A B."]
NUMBERS = "0|0%|12|12.5|-3|100%|1e3|nan|inf|1_000|1,000| 7|12.6|11.4|0.119|-3.1".split("|")
LETTERS = (
    "A B C D E (A) (B). C. D: B) c. a The the answer is Answer: Option [C] A, B; C! :D 答案是B 选C I choose nan".split()
)
LETTERS += ["the correct option is", "A dog is on", "my answer is", "\n"]
YES_NO = "yes|no|Yes|No.|y|N|YES,|not sure|Yes, there is|nope||unknown|I say yes|n.o|maybe".split("|")


def main() -> None:
    """Compares everything and prints the outcome."""
    checks: tuple[Callable[[random.Random], Iterator[tuple[Item, str, float]]], ...] = (
        *(_gqa, _textvqa, _vqav2, _docvqa, _infovqa, _chartqa, _ocrbench, _ai2d, _mmbench, _pope, _mme, _mmstar),
    )
    with contextlib.redirect_stdout(sys.stderr):
        names = [make.__name__.removeprefix("_") for make in checks]
        outcome = {
            name: _compare(name, list(make(random.Random(name)))) for name, make in zip(names, checks, strict=True)
        }
    print(json.dumps(outcome))


def _compare(name: str, pairs: list[tuple[Item, str, float]]) -> dict[str, Any]:
    score = benchmark(name).score
    scored = [scored_answer(item, said, score) for item, said, _ in pairs]
    different = [
        [said, item.answers, theirs, ours.score]
        for (item, said, theirs), ours in zip(pairs, scored, strict=True)
        if ours.score != theirs
    ]
    positive = sum(theirs > 0 for *_, theirs in pairs)
    return {"pairs": len(pairs), "different": different[:5], "positive": positive, "totals": _totals(name, scored)}


def _totals(name: str, scored: list[Scored]) -> dict[str, list[float]]:
    """{headline: [ours, theirs]} of the benchmarks whose headline is no mean."""
    totals = benchmark(name).totals(scored)
    if name == "pope":
        results = [
            {"score": one.score, "prediction": one.prediction.lower(), "ground_truth": one.answers[0]} for one in scored
        ]
        theirs = {key: getattr(pope, f"pope_aggregate_{key}")(results) for key in ("accuracy", "precision", "recall")}
        theirs |= {"f1": pope.pope_aggregate_f1_score(results)}
        return {key: [totals[key] / 100, value] for key, value in theirs.items()}
    if name == "mme":
        results = [{"question_id": one.page, "category": one.family, "score": one.score} for one in scored]
        is_cognition = [one.family in mme.eval_type_dict["Cognition"] for one in scored]
        parts = {
            "perception": [result for result, cognition in zip(results, is_cognition, strict=True) if not cognition],
            "cognition": [result for result, cognition in zip(results, is_cognition, strict=True) if cognition],
        }
        return {key: [totals[key], mme.mme_aggregate_results(part)] for key, part in parts.items()}
    if name == "mmstar":
        results = [{"l2_category": one.facts["part"], "score": one.score} for one in scored]
        return {"average": [totals["average"] / 100, mmstar.mmstar_aggregate_results(results)]}
    if name == "mmbench":
        return {"circular": [totals["circular"] / 100, _mmbench_circular()]}
    return {}


def _words(rng: random.Random, most: int = 5) -> str:
    return rng.choice((" ", " ", "", ", ")).join(rng.choices(WORDS, k=rng.randint(1, most)))


def _near(rng: random.Random, text: str) -> str:
    """The text, or something like it, or something else."""
    edits = (
        lambda: text,
        text.upper,
        lambda: f" {text}.",
        lambda: text.replace(" ", "  "),
        lambda: text[: max(1, len(text) * 2 // 3)],
        lambda: text + rng.choice(("!", " x", "s", "\n", "?")),
        lambda: text.replace("'", "").replace(",", ""),
        lambda: f"it is {text}",
        lambda: f"the {text}",
        lambda: text[: len(text) // 2] + rng.choice(WORDS),
        lambda: _words(rng),
        lambda: "",
    )
    return rng.choice(edits)()


def _item(answers: tuple[str, ...], number: int, page: str = "", family: str = "all", **facts: str) -> Item:
    return Item(
        id=str(number), page=page or str(number), family=family, text="?", answers=answers, picture=bytes, facts=facts
    )


def _gqa(rng: random.Random) -> Iterator[tuple[Item, str, float]]:
    for number in range(PAIRS):
        answer = _words(rng, 2).replace(
            "İ", "I"
        )  # numpy, which lmms-eval lowers with, cuts what lower case makes longer
        said = _near(rng, answer).replace("İ", "I")
        options = {"ignore_case": True, "ignore_punctuation": True}
        theirs = exact_match_fn(references=[answer], predictions=[said.strip()], **options)["exact_match"]
        yield _item((answer,), number), said, float(theirs)


def _people(rng: random.Random) -> tuple[str, ...]:
    pool = [_words(rng, 3) for _ in range(rng.randint(1, 4))]
    return tuple(rng.choice(pool) for _ in range(10))


def _textvqa(rng: random.Random) -> Iterator[tuple[Item, str, float]]:
    for number in range(PAIRS):
        answers = _people(rng)
        said = _near(rng, rng.choice(answers)) + "." * rng.choice((0, 0, 0, 40))
        document = {"answers": list(answers), "question_id": number}
        yield _item(answers, number), said, float(textvqa_process_results(document, [said.strip()])["exact_match"])


def _vqav2(rng: random.Random) -> Iterator[tuple[Item, str, float]]:
    for number in range(PAIRS):
        answers = _people(rng)
        said = _near(rng, rng.choice(answers))
        listed = [{"answer": answer, "answer_id": place} for place, answer in enumerate(answers)]
        theirs = vqav2_process_results({"answers": listed, "question_id": number}, [said.strip()])["exact_match"]
        yield _item(answers, number), said, float(theirs)


def _docvqa(rng: random.Random) -> Iterator[tuple[Item, str, float]]:
    for number in range(PAIRS):
        answers = tuple(_words(rng, 3) for _ in range(rng.randint(1, 3)))
        said = _near(rng, rng.choice(answers))
        yield _item(answers, number), said, float(anls(references=list(answers), predictions=[said.strip()])["anls"])


def _infovqa(rng: random.Random) -> Iterator[tuple[Item, str, float]]:
    return _docvqa(rng)


def _chartqa(rng: random.Random) -> Iterator[tuple[Item, str, float]]:
    for number in range(PAIRS):
        answer = rng.choice((*NUMBERS, _words(rng, 2)))
        said = rng.choice((_near(rng, answer), rng.choice(NUMBERS), answer))
        document = {"answer": answer, "type": "human_test"}
        yield _item((answer,), number), said, chartqa_process_results(document, [said.strip()])["relaxed_overall"]


def _ocrbench(rng: random.Random) -> Iterator[tuple[Item, str, float]]:
    for number in range(PAIRS):
        answers = tuple(_words(rng, 2) for _ in range(rng.randint(1, 2)))
        said = _near(rng, rng.choice(answers))
        name = rng.choice(("HME100k", "IIIT5K"))
        document = {"answer": list(answers), "dataset": name, "question_type": "Doc-oriented VQA"}
        theirs = ocrbench_process_results(document, [said.strip()])["ocrbench_accuracy"]["score"]
        yield _item(answers, number, dataset=name), said, float(theirs)


def _choice(rng: random.Random) -> str:
    return rng.choice((" ", " ", "", "\n")).join(rng.choices(LETTERS, k=rng.randint(0, 4)))


def _ai2d(rng: random.Random) -> Iterator[tuple[Item, str, float]]:
    reads = MultiChoiceRegexFilter(regex_pattern="([A-Z])\\.")
    for number in range(PAIRS):
        answer = rng.choice("ABCD")
        said = rng.choice((answer, f"{answer}. {_words(rng)}", f" {answer.lower()}.", _choice(rng)))
        [filtered] = reads.apply([[said]], [{}])
        options = {"ignore_case": True, "ignore_punctuation": True}
        theirs = exact_match_fn(references=[answer], predictions=[filtered.strip()], **options)["exact_match"]
        yield _item((answer,), number), said, float(theirs)


_asked: list[dict[str, Any]] = []


def _mmbench(rng: random.Random) -> Iterator[tuple[Item, str, float]]:
    """Questions in up to four rotations; every row is also judged alone by lmms-eval."""
    _asked.clear()
    for number in range(PAIRS // 2):
        pool = ["a dog", "two cats", "red", "nothing", "Paris", "The left one"]
        choices = dict(zip("ABCD", rng.sample(pool, rng.randint(2, 4)), strict=False))
        careful = rng.random() < 0.4
        for rotation in range(rng.choice((1, 2, 2, 3))):
            answer = rng.choice(list(choices))
            said = answer if careful else rng.choice((f"{answer}. {choices[answer]}", choices[answer], _choice(rng)))
            row = {"index": number + rotation * 1_000_000, "answer": answer, "prediction": said, "category": "all"}
            _asked.append({**row, **{letter: choices.get(letter) for letter in "ABCD"}, "question": "?"})
            item = _item((answer,), row["index"], page=str(number), choices=json.dumps(choices, ensure_ascii=False))
            yield item, said, _mmbench_alone(_asked[-1], answer)


def _mmbench_alone(row: dict[str, Any], answer: str) -> float:
    table = pandas.DataFrame([{**row, "prediction": row["prediction"].strip()}])
    return float(MMBench_Evaluator().eval_sub_data(table, {row["index"]: answer}, static_only=True))


def _mmbench_circular() -> float:
    rows = [{**row, "prediction": row["prediction"].strip()} for row in _asked]
    return float(MMBench_Evaluator().eval_result(rows, eval_method="static")[0])


def _pope(rng: random.Random) -> Iterator[tuple[Item, str, float]]:
    for number in range(PAIRS):
        answer = rng.choice(("yes", "no"))
        said = rng.choice((answer, rng.choice(YES_NO)))
        document = {"answer": answer.title(), "question_id": number}
        theirs = pope.pope_process_results(document, [said.strip()])["pope_accuracy"]["score"]
        yield _item((answer,), number), said, theirs


def _mme(rng: random.Random) -> Iterator[tuple[Item, str, float]]:
    kinds = [*mme.eval_type_dict["Perception"], *mme.eval_type_dict["Cognition"]]
    for number in range(PAIRS):
        if number % 2 == 0:
            family = rng.choice(kinds)
        answer, said = ("yes", "no")[number % 2], rng.choice((*YES_NO, ("yes", "no")[number % 2]))
        document = {"answer": answer.title(), "category": family, "question_id": number // 2}
        [theirs] = mme.mme_process_results(document, [said.strip()]).values()
        yield _item((answer,), number, page=f"{family}/{number // 2}", family=family), said, theirs["score"]


def _mmstar(rng: random.Random) -> Iterator[tuple[Item, str, float]]:
    for number in range(PAIRS):
        answer = rng.choice("ABCD")
        said = rng.choice((answer, _choice(rng), _choice(rng), f"{_words(rng)} {answer}"))
        theirs = mmstar.exact_match(said.strip(), answer)
        yield _item((answer,), number, part=rng.choice(("one", "two", "three"))), said, theirs


if __name__ == "__main__":
    main()
