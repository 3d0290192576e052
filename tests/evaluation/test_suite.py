import json
from pathlib import Path

import pytest

from tests.evaluation import copies
from tests.tiny import save_encoder, save_language_model
from vision_remember.evaluation.benchmark import Scored
from vision_remember.evaluation.suite import SUITES, evaluate_suite, load_suite, summary
from vision_remember.model.modeling import VisionRememberForConditionalGeneration
from vision_remember.model.processing import VisionRememberProcessor


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    home = tmp_path_factory.mktemp("suite")
    parts = str(save_encoder(home / "encoder")), str(save_language_model(home / "language_model"))
    made = VisionRememberForConditionalGeneration.from_backbones(*parts, projector={"type": "avg_pool", "scale": 3})
    made.save_pretrained(home / "model")
    VisionRememberProcessor.from_backbones(*parts, made.config).save_pretrained(home / "model")
    return str(home / "model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Local copies of three benchmarks."""
    for name in ("chartqa", "mme", "vqav2"):
        copies.write_json(tmp_path / "copies" / name, name)
    return tmp_path / "copies"


def test_a_suite_keeps_answers_prompts_commit_and_versions_with_the_scores(
    model: str, folder: Path, tmp_path: Path
) -> None:
    results = evaluate_suite(model, str(folder), {}, out=tmp_path / "out")
    assert list(results) == ["chartqa", "mme", "vqav2"]
    kept = json.loads((tmp_path / "out" / "chartqa" / "scores.json").read_text(encoding="utf-8"))
    assert kept == results["chartqa"].to_dict()
    assert kept["model"] == model and kept["questions"] == 3
    assert kept["task"] == {"type": "chartqa", "path": str(folder / "chartqa")}
    assert kept["generation"]["max_new_tokens"] == 16
    assert kept["architecture"]["tokens"] == 4 and kept["architecture"]["projector"]["type"] == "avg_pool"
    assert set(kept["totals"]) == {"relaxed", "human", "augmented"} == {"relaxed", *kept["scores"]}
    assert "Relaxed accuracy" in kept["definition"]
    assert {"commit", "versions", "prompt"} <= kept.keys()
    lines = (tmp_path / "out" / "chartqa" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [Scored(**{**json.loads(line), "answers": tuple(json.loads(line)["answers"])}) for line in lines]
    assert answers == results["chartqa"].records
    assert "Answer the question with a single word." in answers[0].question
    headlines = json.loads((tmp_path / "out" / "suite.json").read_text(encoding="utf-8"))
    assert headlines == summary(results) and set(headlines["suite"]["mme"]["totals"]) >= {"perception", "cognition"}


def test_options_reach_every_task_and_a_misspelt_one_is_refused_before_the_first_answer(folder: Path) -> None:
    assert all(task["limit"] == 2 for task in load_suite(str(folder), {"limit": 2}).values())
    with pytest.raises(ValueError, match="did you mean 'limit'"):
        evaluate_suite("no/model", str(folder), {"limits": 2})


def test_the_suite_that_ships_needs_no_files() -> None:
    assert [task["type"] for task in load_suite("synthetic", {"count": 5}).values()] == ["synthetic_documents"] * 2
    assert "synthetic" in SUITES


@pytest.mark.parametrize(
    ("made", "said"), [(["chart_qa"], "has chart_qa: name a folder after each benchmark"), ([], "has no folder")]
)
def test_a_folder_that_is_no_suite_is_refused(tmp_path: Path, made: list[str], said: str) -> None:
    for name in made:
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=said):
        load_suite(str(tmp_path), {})
    with pytest.raises(ValueError, match="one of synthetic"):
        load_suite("sinthetic", {})
