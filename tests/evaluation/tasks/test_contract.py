"""What every task promises; a new file in the folder is tested the day it appears.

`EXAMPLES` say how to load a task, `copies.ROWS` hold three questions of each benchmark, anything else reads a folder of samples.
"""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.evaluation import copies
from vision_remember import plugins
from vision_remember.data.schema import IMAGE, Sample, Turn
from vision_remember.data.synthetic import SyntheticSamples
from vision_remember.evaluation.benchmark import Item, scored_answer
from vision_remember.evaluation.records import score_answer
from vision_remember.evaluation.tasks import ROOM, Question, benchmark, load_task, questions_of

EXAMPLES = {"synthetic_documents": {"count": 5}}


@pytest.fixture(params=plugins.names(ROOM))
def options(request: pytest.FixtureRequest, tmp_path: Path) -> dict:
    """The options of each task, over a few pages."""
    if request.param in copies.ROWS:
        return {"type": request.param, "path": str(copies.write_json(tmp_path / "copy", request.param))}
    return {"type": request.param, **(EXAMPLES.get(request.param) or {"path": str(_dataset(tmp_path))})}


def test_gold_answers_score_one_and_empty_answers_zero(options: dict) -> None:
    module = benchmark(options["type"])
    for question in load_task(options):
        for said, worth in ((question.answers[0], 1.0), ("", 0.0)):
            if module:
                assert scored_answer(question, said, module.score).score == worth
                continue
            facts = {name: getattr(question, name) for name in ("id", "page", "family", "answers")}
            record = score_answer(**facts, question=question.text, prediction=said)
            assert (record.exact_match, record.anls) == (worth, worth)


def test_a_task_asks_the_same_questions_every_time(options: dict) -> None:
    first, again = (
        [(question.id, question.text, question.answers, _bytes(question)) for question in load_task(options)]
        for _ in "ab"
    )
    assert first == again
    assert len({question_id for question_id, *_ in first}) == len(first)


def test_a_question_is_asked_alone_with_the_images_shown_so_far(options: dict) -> None:
    for question in load_task(options):
        request = question.request()
        assert [message["role"] for message in request.messages] == ["user"]
        kinds = [part["type"] for part in request.messages[0]["content"]]
        assert kinds.count("image") == len(request.images) == 1
        words = "".join(part["text"] for part in request.messages[0]["content"] if part["type"] == "text")
        assert words == f"\n{question.text}"


def test_pages_kept_as_png_are_the_pages_that_were_drawn() -> None:
    [question, *_] = load_task({"type": "synthetic_documents", "count": 1, "seed": 3})
    drawn = SyntheticSamples(1, split="test", seed=3).page(0)
    assert question.request().images[0].tobytes() == drawn.image.tobytes()


def test_a_later_image_and_a_system_turn_come_along() -> None:
    pages = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    turns = (
        Turn("system", ("Be brief.",)),
        Turn("user", (IMAGE, "\nWhich colour?")),
        Turn("assistant", ("red",)),
        Turn("user", ("Now?", IMAGE)),
        Turn("assistant", ("blue",)),
    )
    sample = Sample(id="two", images=tuple(pages), turns=turns, source="made up")
    first, second = questions_of(sample)
    assert [message["role"] for message in first.request().messages] == ["system", "user"]
    assert len(first.request().images) == 1 and len(second.request().images) == 2
    assert [part["type"] for part in second.request().messages[1]["content"]] == ["image", "text", "image"]
    assert (second.family, second.answers, second.page) == ("all", ("blue",), "two")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"type": "synthetic_document"}, "did you mean 'synthetic_documents'"),
        ({"type": "synthetic_documents", "cuont": 3}, "did you mean 'count'"),
        ({"type": "synthetic_documents", "count": 0}, "asks no question"),
        ({"type": "synthetic_documents", "families": ["tables"]}, "unknown family 'tables'"),
        ({"type": "dataset"}, "needs option 'path'"),
    ],
)
def test_a_wrong_task_is_refused_by_name(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_task(options)


@pytest.mark.parametrize("name", copies.ROWS)
def test_a_benchmark_gives_full_totals_to_gold_answers_and_none_to_silence(name: str, tmp_path: Path) -> None:
    module = benchmark(name)
    items = load_task({"type": name, "path": str(copies.write_json(tmp_path / "copy", name))})
    gold, silent = (
        module.totals([scored_answer(item, said and item.answers[0], module.score) for item in items])
        for said in (True, "")
    )
    best = {"mme": 200.0, "ocrbench": 3.0}.get(name, 100.0)
    assert next(iter(gold.values())) == best
    assert set(silent.values()) == {0.0}


@pytest.mark.parametrize("name", copies.ROWS)
def test_a_benchmark_quotes_its_definition_its_source_and_its_longest_answer(name: str) -> None:
    module = benchmark(name)
    assert "Source:" in module.__doc__ and "lmms_eval" in module.__doc__ and "arXiv" in module.__doc__
    assert module.MAX_NEW_TOKENS in (16, 32, 128)


def test_every_benchmark_has_an_example() -> None:
    assert {name for name in plugins.names(ROOM) if benchmark(name)} == set(copies.ROWS)


def _bytes(question: Question | Item) -> list[bytes]:
    return [image.tobytes() for image in question.request().images]


def _dataset(folder: Path) -> Path:
    talk = [("human", "<image>\nWhich colour?"), ("gpt", "red"), ("human", "Again?"), ("gpt", "still red")]
    records = []
    for number in range(2):
        Image.new("RGB", (6, 6), "red").save(folder / f"{number}.png")
        conversation = [{"from": who, "value": said} for who, said in talk]
        records.append({"id": f"r{number}", "image": f"{number}.png", "conversations": conversation})
    (folder / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return folder
