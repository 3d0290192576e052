"""A whole comparison of tiny random models: three rows, two seeds, a handful of pages."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny import save_encoder, save_language_model
from vision_remember.evaluation.compare import compare
from vision_remember.evaluation.plan import load_comparison
from vision_remember.evaluation.records import read_answers
from vision_remember.evaluation.row_folder import RowFolder

TIMINGS = ("train_seconds", "prefill_ms")
INSTRUCT = """\
name: tiny
model:
  vision: {folder}/encoder
  text: {folder}/language_model
  projector: {{type: mlp}}
data:
  sources:
    - synthetic: {{count: 6, split: train, seed: 1, questions: 2}}
training:
  trainable: [projector, refusion]
  learning_rates: {{projector: 1.0e-3, refusion: 1.0e-3}}
  steps: 3
  batch_size: 2
  cache_features: true
"""
COMPARISON = """\
name: tiny
instruct: {folder}/instruct.yaml
reference: uncompressed
rows:
  - name: uncompressed
    projector: {{type: mlp}}
  - name: avg_pool
    projector: {{type: avg_pool, scale: 3}}
  - name: avg_pool + remember
    projector: {{type: avg_pool, scale: 3}}
    refusion: {{type: remember, layers: [0, 2], levels: [1, 3]}}
evaluation: {{count: 10, splits: [test, shift], questions: 1, batch_size: 4, max_new_tokens: 3}}
"""
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with backbones, the training recipe and the comparison."""
    folder = tmp_path_factory.mktemp("compare")
    save_encoder(folder / "encoder")
    save_language_model(folder / "language_model")
    (folder / "instruct.yaml").write_text(INSTRUCT.format(folder=folder), encoding="utf-8")
    (folder / "compare.yaml").write_text(COMPARISON.format(folder=folder), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def results(home: Path) -> dict:
    """The outcome of an uninterrupted comparison in `home/whole`."""
    return compare(home / "compare.yaml", seeds=SEEDS, out=home / "whole")


def test_results_have_the_promised_shape(results: dict, home: Path) -> None:
    assert json.loads((home / "whole" / "results.json").read_text()) == results
    assert [(row["name"], row["seed"], row["split"]) for row in results["rows"]] == [
        (name, seed, split)
        for split in ("test", "shift")
        for seed in SEEDS
        for name in ("uncompressed", "avg_pool", "avg_pool + remember")
    ]
    tokens = {"uncompressed": ("mlp", "none", 36), "avg_pool": ("avg_pool", "none", 4)}
    tokens["avg_pool + remember"] = ("avg_pool", "remember", 4)
    for row in results["rows"]:
        assert (row["projector"], row["refusion"], row["tokens"]) == tokens[row["name"]]
        assert set(row["scores"]) == {"text", "table", "chart", "form", "layout"}
        for score in row["scores"].values():
            assert score["n"] == 2 and len(score["ci95"]) == 2
        fine = [row["scores"][family]["value"] for family in ("text", "table", "chart", "form")]
        assert row["mean"] == pytest.approx(sum(fine) / 4)
        assert row["trainable_parameters"] > 0 and row["train_seconds"] > 0 and row["prefill_ms"] > 0
        assert row["device"] == (torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")
    flops = {row["name"]: row["prefill_flops"] for row in results["rows"]}
    assert flops["uncompressed"] > flops["avg_pool + remember"] > flops["avg_pool"] > 0
    assert set(results["summary"]["recovered"]) == set(results["summary"]["layout"]) == {"avg_pool + remember"}
    assert results["summary"]["recovered"]["avg_pool + remember"]["reason"]  # random models: nothing to recover
    assert set(results["curves"]["avg_pool"]) == {"0", "1"} and results["curves"]["avg_pool"]["0"]["step"] == [1, 2, 3]


def test_every_row_answered_the_same_pages_and_kept_its_answers(results: dict, home: Path) -> None:
    asked = {
        path.parts[-3:-1]: [(one.id, one.question) for one in read_answers(path)]
        for path in _files(home / "whole", "answers-test.jsonl")
    }
    assert len(asked) == 6 and all(len(questions) == 10 for questions in asked.values())
    assert len({tuple(questions) for questions in asked.values()}) == 1


def test_rows_of_a_seed_saw_the_same_samples_and_seeds_another_order(results: dict, home: Path) -> None:
    runs = [json.loads(path.read_text()) for path in _files(home / "whole", "run.json")]
    assert len({run["must_agree"]["data"] for run in runs if run["seed"] == 0}) == 1
    budgets = {path.read_text().split("training:")[1] for path in _files(home / "whole", "recipe.yaml")}
    assert len(budgets) == 1


def test_the_report_shows_pages_with_the_answer_of_each_row(results: dict, home: Path) -> None:
    page = (home / "whole" / "report.html").read_text(encoding="utf-8")
    assert page.count('class="page"') == 10  # two of each of five families
    assert page.count('<li class="') == 30
    assert not re.search(r"https?:", page)


def test_a_comparison_says_how_the_models_it_starts_from_were_trained(results: dict, home: Path) -> None:
    start, out = home / "whole" / "rows" / "uncompressed" / "seed-0" / "training" / "model", home / "started"
    shutil.copytree(start, home / "start")
    head, rest = (home / "compare.yaml").read_text().split("  - name: avg_pool\n")
    alone = f"{head}    checkpoint: {home}/start\nevaluation:{rest.split('evaluation:')[1]}"
    (home / "started.yaml").write_text(alone, encoding="utf-8")
    told = compare(home / "started.yaml", out=out)["starts"]["uncompressed"]
    assert (told["recipe"], told["seed"], told["steps"], told["samples"]) == ("tiny", 0, 3, 6)
    assert told["curve"] == results["curves"]["uncompressed"]["0"]
    assert "tiny, 3 steps, 6 samples, seed 0. All seeds share these starts" in (out / "report.html").read_text()
    (home / "start" / "trainer_state.json").unlink()  # which is no part of what a row is
    assert compare(home / "started.yaml", out=out)["starts"] == {}


def test_an_interrupted_comparison_goes_on_and_ends_as_if_it_had_not_been(results: dict, home: Path) -> None:
    out = home / "interrupted"
    shutil.copytree(home / "whole", out)
    for name in ("results.json", "report.html"):
        (out / name).unlink()
    shutil.rmtree(out / "rows" / "avg_pool_+_remember" / "seed-1")  # never begun
    trained, killed = (out / "rows" / name / "seed-1" for name in ("avg_pool", "uncompressed"))
    for name in ("finished.json", "answers-test.jsonl", "answers-shift.jsonl"):
        (trained / name).unlink()  # stopped while it answered
    for path in killed.iterdir():
        shutil.rmtree(path) if path.is_dir() else None if path.name == "row.json" else path.unlink()  # just begun
    finished, models = _stamps(out, "finished.json"), _stamps(trained, "model.safetensors")
    assert len(finished) == 3
    resumed = compare(home / "compare.yaml", seeds=SEEDS, out=out)
    assert _without_timings(resumed) == _without_timings(results)
    assert _stamps(out, "finished.json").items() >= finished.items()
    assert _stamps(trained, "model.safetensors") == models


def test_a_finished_comparison_is_only_written_out_again(results: dict, home: Path) -> None:
    before = {
        name: _stamps(home / "whole", name) for name in ("finished.json", "answers-test.jsonl", "model.safetensors")
    }
    again = compare(home / "compare.yaml", seeds=SEEDS, out=home / "whole")
    assert _without_timings(again) == _without_timings(results)
    assert before == {name: _stamps(home / "whole", name) for name in before}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluation.count=20", "evaluation.test.count was 10, is 20"),
        ("rows.2.refusion.layers=[1]", r"model.refusion.layers was \[0, 2\], is \[1\]"),
        ("rows.1.overrides={training.weight_decay: 0.1}", "training.weight_decay was 0.0, is 0.1"),
    ],
)
def test_a_changed_recipe_is_refused_before_anything_is_trained(
    results: dict, home: Path, override: str, said: str
) -> None:
    before = _stamps(home / "whole", "*")
    with pytest.raises(ValueError, match=said + r"(.|\n)*Choose another --out"):
        compare(home / "compare.yaml", seeds=SEEDS, out=home / "whole", overrides=[override])
    assert _stamps(home / "whole", "*") == before


def test_a_row_stays_the_same_however_attention_is_computed(home: Path, tmp_path: Path) -> None:
    for way in ("eager", "sdpa"):
        recipe = INSTRUCT.format(folder=home).replace("model:\n", f"model:\n  attn_implementation: {way}\n")
        (tmp_path / "instruct.yaml").write_text(recipe, encoding="utf-8")
        (tmp_path / "compare.yaml").write_text(COMPARISON.format(folder=tmp_path), encoding="utf-8")
        comparison = load_comparison(tmp_path / "compare.yaml")
        folder = RowFolder.of(comparison, comparison.rows[0], 0, tmp_path)
        assert folder.recipe.model.attn_implementation == way
        folder.check()
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.begin()


def test_other_weights_under_the_same_path_are_a_changed_recipe(results: dict, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "home")
    moved = tmp_path / "home"
    for recipe in ("instruct.yaml", "compare.yaml"):
        (moved / recipe).write_text((moved / recipe).read_text().replace(str(home), str(moved)))
    for row in _files(moved / "whole", "row.json"):
        row.write_text(row.read_text().replace(str(home), str(moved)))
    save_language_model(moved / "language_model", seed=1)
    with pytest.raises(ValueError, match="weights.text was"):
        compare(moved / "compare.yaml", seeds=SEEDS, out=moved / "whole")


def test_so_are_other_weights_of_the_projector(home: Path, tmp_path: Path) -> None:
    comparison = load_comparison(home / "compare.yaml", [f"rows.0.projector_weights={tmp_path}"])
    digests = set()
    for value in (0.0, 1.0):
        save_file({"weight": torch.full((2,), value)}, tmp_path / "model.safetensors")
        folder = RowFolder.of(comparison, comparison.rows[0], 0, tmp_path / "out")
        digests.add(folder.identity["weights.projector_weights"])
    assert len(digests) == 2


def test_the_command_names_a_recipe_below_the_working_directory_from_there(
    results: dict, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    again = compare(home / "compare.yaml", seeds=SEEDS, out=home / "whole")
    assert again is not None
    assert again["command"] == "vision-remember compare compare.yaml --seeds 0,1 --out DIR"


def test_shards_make_one_comparison(results: dict, home: Path) -> None:
    out = home / "shards"
    assert compare(home / "compare.yaml", seeds=SEEDS, out=out, shard=(2, 2)) is None
    assert len(_files(out, "finished.json")) == 3 and not (out / "results.json").exists()
    whole = compare(home / "compare.yaml", seeds=SEEDS, out=out, shard=(1, 2))
    assert whole is not None and _without_timings(whole) == _without_timings(results)


def test_finished_rows_are_one_comparison_without_their_weights(results: dict, home: Path) -> None:
    out = home / "copied"
    left_out = ("*.safetensors", "checkpoints", "lock", "metrics.jsonl", "recipe.yaml", "run.json", "summary.json")
    shutil.copytree(home / "whole" / "rows", out / "rows", ignore=shutil.ignore_patterns(*left_out))
    assert _without_timings(compare(home / "compare.yaml", seeds=SEEDS, out=out)) == _without_timings(results)


def test_an_elastic_model_is_trained_once_and_answers_at_each_of_its_rates(home: Path) -> None:
    shared = "projector: {type: avg_pool, scale: 3}, refusion: {type: remember}, overrides: {training.tokens_per_image: [9, 4]}"
    text = (home / "compare.yaml").read_text(encoding="utf-8")
    rows = "".join(
        f"  - {{name: elastic {tokens}, {shared}, tokens: {tokens}{also}}}\n"
        for tokens, also in ((9, ""), (4, ", trained_as: elastic 9"))
    )
    (home / "elastic.yaml").write_text(
        text.replace("evaluation:", f"{rows}differences: [[elastic 4, elastic 9]]\nevaluation:"), encoding="utf-8"
    )
    assert compare(home / "elastic.yaml", out=home / "elastic", shard=(1, 2)) is None
    assert not list((home / "elastic" / "rows").glob("elastic*"))
    results = compare(home / "elastic.yaml", out=home / "elastic", shard=(2, 2))
    assert len(_files(home / "elastic", "metrics.jsonl")) == 4
    nine, four = (row for row in results["rows"] if row["name"].startswith("elastic") and row["split"] == "test")
    assert (nine["tokens"], four["tokens"]) == (9, 4) and nine["train_seconds"] == four["train_seconds"]
    assert nine["prefill_flops"] > four["prefill_flops"]
    answers = [_files(home / "elastic" / "rows" / f"elastic_{tokens}", "answers-test.jsonl")[0] for tokens in (9, 4)]
    assert len({len(read_answers(path)) for path in answers}) == 1
    assert results["summary"]["differences"][0]["row"] == "elastic 4"


def test_a_model_that_cannot_be_is_refused_before_anything_is_trained(home: Path, tmp_path: Path) -> None:
    nine = 'rows.2.projector={"type": "mqt", "num_queries": 9, "num_heads": 2}'
    with pytest.raises(ValueError, match=r"row 'avg_pool \+ remember': 9 vision tokens .* make 4, 16, 36 of them"):
        compare(home / "compare.yaml", out=tmp_path / "out", overrides=[nine])
    assert not (tmp_path / "out").exists()


def test_a_shard_that_is_none_is_refused(home: Path) -> None:
    with pytest.raises(ValueError, match=r"from 1 to n"):
        compare(home / "compare.yaml", out=home / "never", shard=(3, 2))


def test_seeds_are_given_once_each(home: Path) -> None:
    with pytest.raises(ValueError, match="each once"):
        compare(home / "compare.yaml", seeds=(0, 0), out=home / "never")
    assert not (home / "never").exists()


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.rglob(pattern) if path.is_file())


def _stamps(folder: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in _files(folder, pattern)}


def _without_timings(results: dict) -> dict:
    plain = copy.deepcopy(results)
    for row in plain["rows"]:
        for name in TIMINGS:
            del row[name]
    return plain
