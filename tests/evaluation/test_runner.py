import json
from pathlib import Path

import pytest

from tests.tiny import save_encoder, save_language_model
from vision_remember.evaluation.prefill import prefill_cost
from vision_remember.evaluation.records import read_answers
from vision_remember.evaluation.runner import Evaluation, answer_questions, evaluate
from vision_remember.evaluation.tasks import load_task
from vision_remember.model.engine import Engine
from vision_remember.model.modeling import VisionRememberForConditionalGeneration
from vision_remember.model.processing import VisionRememberProcessor

TASK = {"type": "synthetic_documents", "count": 10, "split": "test", "questions": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("runner")
    parts = save_encoder(home / "encoder"), save_language_model(home / "language_model")
    model = VisionRememberForConditionalGeneration.from_backbones(
        *map(str, parts), projector={"type": "avg_pool", "scale": 3}
    )
    model.save_pretrained(home / "model")
    VisionRememberProcessor.from_backbones(*map(str, parts), model.config).save_pretrained(home / "model")
    return home / "model"


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> Evaluation:
    return evaluate(folder, TASK, out=folder.parent / "out", max_new_tokens=4)


def test_answers_prompts_and_versions_are_kept_with_the_scores(folder: Path, evaluation: Evaluation) -> None:
    out = folder.parent / "out"
    assert read_answers(out / "answers.jsonl") == evaluation.records
    kept = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert kept == evaluation.to_dict()
    assert {"torch", "transformers", "vision-remember", "anls", "python"} <= set(kept["versions"])
    assert kept["task"] == TASK and kept["questions"] == 20
    question = evaluation.records[0].question
    assert kept["prompt"] == f"<|im_start|>user\n<image> x 4\n{question}<|im_end|>\n<|im_start|>assistant\n"


def test_every_family_has_a_score_of_both_metrics(evaluation: Evaluation) -> None:
    assert set(evaluation.scores) == {"text", "table", "chart", "form", "layout"}
    for score in evaluation.scores.values():
        assert score["n"] == 4
        assert score["ci95"][0] <= score["value"] <= score["ci95"][1]
        assert score["anls"]["value"] >= score["value"]


def test_answers_do_not_depend_on_the_batch_size(folder: Path, evaluation: Evaluation) -> None:
    questions = load_task(TASK)[:5]
    alone = answer_questions(Engine.load(str(folder)), questions, batch_size=1, max_new_tokens=4)
    assert alone == evaluation.records[:5]


def test_a_bad_sample_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "that"}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "a7", "image": "broken.png", "conversations": talk}]))
    with pytest.raises(ValueError, match="a7"):
        evaluate(folder, {"type": "dataset", "path": str(tmp_path)})


def test_prefill_is_timed_and_counted_for_every_engine(folder: Path) -> None:
    engine = Engine.load(str(folder))
    cost = prefill_cost({"one": engine, "two": engine}, load_task(TASK)[0], rounds=3)
    assert set(cost) == {"one", "two"} and all(0 < one["prefill_ms"] < 60_000 for one in cost.values())
    assert cost["one"]["prefill_flops"] == cost["two"]["prefill_flops"] > 0
