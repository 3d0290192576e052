import typing
from pathlib import Path

import pytest
import yaml

from vision_remember.model.parts import PART_NAMES
from vision_remember.training import RecipeError, load_recipe
from vision_remember.training.located import read
from vision_remember.training.recipe import TrainingSection


def refused(path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return list(caught.value.problems)


def rewritten(path, old: str, new: str):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def line_of(path, word: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if word in line)


def test_a_recipe_survives_being_saved_and_read_again(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file, ["training.learning_rates.projector=1e-5"])
    (tmp_path / "saved.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "saved.yaml") == recipe


def test_extends_merges_key_by_key_and_overrides_come_last(recipe_file, tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text("extends: align.yaml\nname: child\ntraining: {steps: 9, batch_size: 2}\n")
    recipe = load_recipe(child, ["training.batch_size=3", "data.sources.0.limit=5"])
    assert (recipe.name, recipe.training.steps, recipe.training.batch_size) == ("child", 9, 3)
    assert recipe.training.trainable == ("projector", "refusion")
    assert recipe.data.sources[0].limit == 5


def test_another_type_drops_the_options_of_the_one_it_replaces(recipe_file, tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text("extends: align.yaml\nmodel:\n  refusion: {type: none}\n")
    recipe = load_recipe(child, ["model.projector={type: mlp}"])
    assert recipe.model.refusion == {"type": "none"}
    assert recipe.model.projector == {"type": "mlp"}


def test_every_problem_is_reported_at_once_with_its_line_and_the_nearest_key(recipe_file):
    rewritten(recipe_file, "steps: 6", "stepz: 6")
    rewritten(recipe_file, "batch_size: 4", "batch_size: 0")
    rewritten(recipe_file, "seed: 1", "seed: one")
    rewritten(recipe_file, "scale: 2", "scal: 2")
    problems = "\n".join(refused(recipe_file))
    assert (
        f"{recipe_file}:{line_of(recipe_file, 'stepz')}: unknown key 'training.stepz'; did you mean 'steps'?"
        in problems
    )
    assert (
        f"{recipe_file}:{line_of(recipe_file, 'batch_size')}: training.batch_size is 0: it must be at least 1"
        in problems
    )
    assert f"{recipe_file}:{line_of(recipe_file, 'seed')}: seed must be a whole number, not 'one'" in problems
    assert f"{recipe_file}:{line_of(recipe_file, 'scal')}" in problems and "'scale'" in problems


@pytest.mark.parametrize(
    ("written", "because"),
    [
        ("projector: 1e-4", "YAML reads 1e-4 as text; write 1.0e-04"),
        ("projector: '0.1'", "must be a number"),
        ("projector: -0.1", "above 0"),
        ("projector: .nan", "above 0"),
        ("projectr: 0.1", "did you mean 'projector'"),
    ],
)
def test_learning_rates_that_are_no_learning_rates_are_refused(recipe_file, written, because):
    rewritten(recipe_file, "projector: 0.01", written)
    assert because in "\n".join(refused(recipe_file))


@pytest.mark.parametrize(
    ("rates", "because"), [("{refusion: 1.5}", "below 1"), ("{refusio: 0.1}", "did you mean 'refusion'")]
)
def test_muon_rates_are_checked_as_learning_rates_are(recipe_file, rates, because):
    problems = "\n".join(refused(recipe_file, f"training.muon_rates={rates}"))
    assert "training.muon_rates.refusio" in problems and because in problems


@pytest.mark.parametrize(
    ("key", "written", "because"),
    [
        ("training.cache_features", "no", "YAML reads a bare no as false; write false"),
        ("name", "no", 'write "no" in quotes'),
        ("training.steps", "1.5", "whole number"),
        ("training.steps", "true", "whole number"),
        ("training.warmup_ratio", "1.0", "below 1"),
        ("training.max_grad_norm", ".inf", "finite"),
        ("training.precision", "float31", "did you mean 'float32'"),
        ("training.trainable", "[projecter]", "did you mean 'projector'"),
        ("training.trainable", "[]", "is empty"),
        ("training.trainable", "projector", "must be a list"),
        ("training.tokens_per_image", "[16, 0]", "tokens_per_image.1: is 0: numbers of tokens are 1 or more"),
        ("training.tokens_per_image", "[16, 16]", "named once"),
        ("training.every_rate", "true", "takes a step at all of tokens_per_image, which is empty"),
        ("data.sources", "[]", "is empty"),
        ("data.sources.0.path", "null", "either a path or synthetic"),
        ("data.sources.0.path", "nowhere.json", "does not exist"),
        ("model.projector", "null", "must be a mapping"),
        ("model.refusion", "{type: remembr}", "did you mean 'remember'"),
        ("model.checkpoint", "nowhere", "train the stage before this one first"),
        ("model.vision", "null", "needs this backbone"),
        ("model.vision", "embedded/nothing", "not in the package"),
    ],
)
def test_values_that_cannot_work_are_refused_before_any_weight_is_loaded(recipe_file, key, written, because):
    assert because in "\n".join(refused(recipe_file, f"{key}={written}"))


def test_files_may_be_absent_where_nothing_is_read(recipe_file):
    absent = ["model.checkpoint=nowhere", "data.sources.0.path=nowhere.json"]
    assert len(refused(recipe_file, *absent)) == 2
    assert load_recipe(recipe_file, absent, has_files=False).model.start == "nowhere"


def test_conflicts_between_keys_are_refused(recipe_file):
    trains_lm = ["training.trainable=[language_model]", "training.learning_rates.language_model=0.001"]
    assert "needs the model of an align stage" in "\n".join(refused(recipe_file, *trains_lm))
    assert load_recipe(recipe_file, [*trains_lm, "model.checkpoint=scratch"]).model.start is None
    trains_encoder = ["training.trainable=[encoder]", "training.learning_rates.encoder=0.001"]
    assert "cannot be cached" in "\n".join(refused(recipe_file, *trains_encoder, "training.cache_features=true"))
    assert "no learning rate" in "\n".join(refused(recipe_file, "training.trainable=[encoder]"))


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("name: a\nname: b\n", ":2: 'name' stands twice"),
        ("name: &a b\nseed: *a\n", ":2: aliases"),
        ("name: [", ":1: not YAML"),
        ("- name\n", "must be a mapping"),
        ("extends: nowhere.yaml\n", ":1: extends nowhere.yaml, which is not a file"),
        ("extends: bad.yaml\n", "extends itself"),
        ("[" * 5000, "nested deeper"),
        ("", "name is missing"),
    ],
)
def test_files_that_are_no_recipe_are_refused_by_line(tmp_path, text, because):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert because in "\n".join(refused(path))


@pytest.mark.parametrize("override", ["steps", "=3", "training..steps=3", "data.sources.7.limit=3"])
def test_overrides_that_fit_nowhere_are_refused(recipe_file, override):
    assert f"override {override}" in "\n".join(refused(recipe_file, override))


def test_a_recipe_that_is_not_there_or_not_text_is_refused(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    assert "cannot be read" in refused(tmp_path / "absent.yaml")[0]
    assert "UTF-8" in refused(tmp_path / "bytes.yaml")[0]


def test_parts_are_those_of_the_model():
    (named, _) = typing.get_args(typing.get_type_hints(TrainingSection)["trainable"])
    assert set(typing.get_args(named)) == set(PART_NAMES)


def test_the_resolved_recipe_is_plain_yaml(recipe_file):
    assert yaml.safe_load(load_recipe(recipe_file).to_yaml())["training"]["trainable"] == ["projector", "refusion"]


RECIPES = Path(__file__).parents[2] / "recipes"
STAGES = [
    path for path in sorted(RECIPES.rglob("*.yaml")) if "rows" not in read(path).value
]  # the others are comparisons


@pytest.mark.parametrize("path", STAGES, ids=lambda path: str(path.relative_to(RECIPES)))
def test_shipped_recipes_are_well_formed_before_any_stage_has_run(path):
    recipe = load_recipe(path, ["model.checkpoint=scratch"], has_files=False)
    assert set(recipe.training.trainable) <= recipe.training.learning_rates.keys()
