from pathlib import Path

import pytest

from vision_remember.evaluation.plan import load_comparison
from vision_remember.model.embedded import model_path
from vision_remember.training import load_recipe
from vision_remember.training.located import read

PLAN = """\
name: small
instruct: instruct.yaml
reference: uncompressed
rows:
  - name: uncompressed
    projector: {type: mlp}
  - name: pooled
    projector: {type: avg_pool, scale: 3}
  - name: pooled + remember
    projector: {type: avg_pool, scale: 3}
    refusion: {type: remember}
  - name: pooled + remember, frozen
    projector: {type: avg_pool, scale: 3}
    refusion: {type: remember}
    overrides: {training.warmup_ratio: 0.1}
evaluation: {count: 20, splits: [test, shift]}
"""


def test_the_twin_of_a_row_has_its_projector_and_overrides_and_no_refusion(tmp_path: Path) -> None:
    plan = load_comparison(_write(tmp_path, PLAN.replace(", frozen", " frozen")))
    twins = {row.name: plan.compressed_twin(row) for row in plan.rows if row.refusion["type"] != "none"}
    assert twins == {"pooled + remember": "pooled", "pooled + remember frozen": None}


ELASTIC = """\
overrides: {training.warmup_ratio: 0.1}
    tokens: 4
  - name: again
    trained_as: pooled + remember, frozen
    tokens: 9"""


@pytest.mark.parametrize(
    ("projector", "said"),
    [
        ("{type: avg_pool, scale: 3}", None),
        ("{type: mlp}", r"rows.4.trained_as: 'pooled \+ remember frozen' is not trained as this row"),
    ],
)
def test_a_row_may_answer_with_the_model_of_an_earlier_row_of_the_same_recipe(tmp_path: Path, projector, said) -> None:
    row = f"{ELASTIC}\n    projector: {projector}\n    refusion: {{type: remember}}\n    overrides: {{training.warmup_ratio: 0.1}}"
    text = PLAN.replace("overrides: {training.warmup_ratio: 0.1}", row).replace(", frozen", " frozen")
    if said is None:
        plan = load_comparison(_write(tmp_path, text))
        assert [(row.tokens, row.trained_as) for row in plan.rows[3:]] == [(4, None), (9, "pooled + remember frozen")]
        return
    with pytest.raises(ValueError, match=said):
        load_comparison(_write(tmp_path, text))


def test_a_row_names_what_its_projector_starts_from(tmp_path: Path) -> None:
    recipe = (Path(__file__).parents[2] / "recipes" / "tiny" / "align.yaml").as_posix()
    text = PLAN.replace("instruct: instruct.yaml", f"instruct: {recipe}")
    text = text.replace(
        "projector: {type: mlp}", "projector: {type: mlp}\n    projector_weights: embedded/projector_mlp", 1
    )
    plan = load_comparison(_write(tmp_path, text.replace(", frozen", " frozen")))
    starts = [plan.recipe(row, 0).model.projector_weights for row in plan.rows[:2]]
    assert starts == ["embedded/projector_mlp", "embedded/projector_avg_pool"]


def test_a_twin_answers_with_as_many_tokens(tmp_path: Path) -> None:
    text = PLAN.replace(", frozen", " frozen").replace(
        "refusion: {type: remember}\n  -", "refusion: {type: remember}\n    tokens: 4\n  -"
    )
    plan = load_comparison(_write(tmp_path, text))
    assert plan.rows[2].tokens == 4 and plan.compressed_twin(plan.rows[2]) is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "reference: uncompressed",
            "reference: uncompresed",
            r"3: reference: no row is called 'uncompresed'; did you mean 'uncompressed'",
        ),
        ("reference: uncompressed", "reference: pooled + remember", r"must have the re-fusion none"),
        ("  - name: pooled\n", "  - name: uncompressed\n", r"rows.1.name: 'uncompressed' is taken by another row"),
        ("name: uncompressed", "name: ../up", r"'../up' must be words of letters"),
        (
            "training.warmup_ratio: 0.1",
            "training.steps: 9",
            r"overrides.training.steps: all rows share data, order and budget",
        ),
        ("training.warmup_ratio: 0.1", "data: {}", r"overrides.data: all rows share data, order and budget"),
        ("training.warmup_ratio: 0.1", "training: {}", r"overrides.training: all rows share data, order and budget"),
        (
            "training.warmup_ratio: 0.1",
            "model.text: x",
            r"say it with the row's projector, refusion, checkpoint or projector_weights",
        ),
        ("count: 20", "count: 4", r"4 pages cannot cover 5 families"),
        ("count: 20", "count: 20, coarse: [text]", r"a family stands twice"),
        (
            "training.warmup_ratio: 0.1}",
            "training.warmup_ratio: 0.1}\n    trained_as: poled",
            r"rows.3.trained_as: no earlier row that is trained is called 'poled'; did you mean 'pooled'",
        ),
        ("evaluation:", "differences: [[pooled]]\nevaluation:", r"differences.0: needs two rows, not 1"),
        (
            "evaluation:",
            "differences: [[pooled, polled]]\nevaluation:",
            r"no row is called 'polled'; did you mean 'pooled'",
        ),
        ("evaluation:", "averages: {one: [pooled]}\nevaluation:", r"averages.one: 'pooled' recovers nothing"),
        (
            "name: pooled\n",
            "name: pooled\n    apart: why\n",
            r"rows.1.apart: rows that stand apart come after all others",
        ),
        ("name: uncompressed\n", "name: uncompressed\n    apart: why\n", r"reference: 'uncompressed' stands apart"),
        ("evaluation:", "averages: {one: []}\nevaluation:", r"averages.one: names no row"),
        ("count: 20", "coutn: 20", r"unknown key 'evaluation.coutn'; did you mean 'count'"),
    ],
)
def test_a_wrong_comparison_is_refused_with_its_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = PLAN.replace(", frozen", " frozen")
    assert old in text
    with pytest.raises(ValueError, match=said):
        load_comparison(_write(tmp_path, text.replace(old, new, 1)))


def _write(folder: Path, text: str) -> Path:
    path = folder / "compare.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_recipe_is_found_beside_the_comparison_from_any_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = load_comparison(SHIPPED[0])
    assert plan.recipe(plan.rows[0], seed=0).training.steps > 0


SHIPPED = sorted(path for path in (Path(__file__).parents[2] / "recipes").rglob("*.yaml") if "rows" in read(path).value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_comparison_is_sound_and_starts_from_what_is_there(path: Path) -> None:
    comparison = load_comparison(path)
    for row in comparison.rows:
        recipe = load_recipe(comparison.instruct, has_files=False)
        start = row.checkpoint or row.projector_weights
        if row.checkpoint is None:
            assert start is not None and recipe.model.checkpoint == "scratch"
            is_made = start.startswith("runs/projectors/")  # by make_starts.py
            assert is_made or (Path(model_path(start)) / "model.safetensors").is_file()
        elif row.checkpoint.startswith("embedded/"):
            assert (Path(model_path(row.checkpoint)) / "config.json").is_file()
        else:  # made by make_starts.py
            assert row.checkpoint.startswith("runs/align/") and row.checkpoint.endswith("/model")
            assert (Path(model_path(f"embedded/projector_{row.projector['type']}")) / "model.safetensors").is_file()
