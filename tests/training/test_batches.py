import json
import shutil

import pytest
import torch

from vision_remember.data.schema import DataError
from vision_remember.training.batches import Batches
from vision_remember.training.order import SampleOrder
from vision_remember.training.start import build_model


@pytest.fixture
def broken(tmp_path, squares):
    """The squares, with sample 5's image gone and sample 7 without an answer."""
    folder = tmp_path / "broken"
    shutil.copytree(squares, folder)
    (folder / "5.png").unlink()
    records = json.loads((folder / "data.json").read_text())
    records[7]["conversations"].pop()
    (folder / "data.json").write_text(json.dumps(records))
    return folder


@pytest.fixture
def build(make_recipe, tmp_path):
    def make(*overrides: str) -> Batches:
        recipe = make_recipe(*overrides)
        return Batches(SampleOrder(recipe, 12), build_model(recipe)[1], recipe, tmp_path / "run")

    return make


def test_samples_are_prepared_once(build, monkeypatch):
    batches = build()
    keys = list(batches.keys())
    first = batches.collate(keys)
    monkeypatch.setattr(batches.order, "read", lambda key: pytest.fail(f"{key} is prepared again"))
    assert torch.equal(batches.collate(keys)["input_ids"], first["input_ids"])


def test_loader_workers_keep_nothing(build):
    batches = build("training.num_workers=2")
    batches.collate(list(batches.keys()))
    assert not batches._prepared


def test_a_bad_sample_is_an_error_that_names_it(build, broken):
    batches = build(f"data.sources.0.path={broken}")
    with pytest.raises(DataError, match=r"square-[57]"):
        for key in batches.keys():
            batches.collate([key])


def test_quarantined_samples_are_listed_and_leave_their_batch_smaller(build, broken, monkeypatch):
    monkeypatch.setattr("vision_remember.data.quarantine.CEILING", 1.0)
    batches = build(f"data.sources.0.path={broken}", "data.on_bad_sample=quarantine")
    batches.quarantine.ceiling = 1.0
    assert len(batches.collate(list(batches.keys()))["input_ids"]) == 10
    places = " ".join(sorted(batches.quarantine.places()))
    assert "square-5" in places and "#7" in places and len(batches.quarantine.places()) == 2


def test_a_batch_of_quarantined_samples_alone_has_no_target(build, broken):
    batches = build(f"data.sources.0.path={broken}", "data.on_bad_sample=quarantine")
    bad = next(key for key in batches.keys() if key[1] == 5)
    assert (batches.collate([bad])["labels"] == -100).all()


def test_overlong_samples_are_refused_by_name(build):
    batches = build("data.max_length=12")
    with pytest.raises(DataError, match=r"square-\d+.*limit 12"):
        for key in batches.keys():
            batches.collate([key])


def test_ids_name_the_samples_of_a_step(build):
    batches = build()
    named = [batches.ids(step) for step in range(3)]
    assert [len(ids) for ids in named] == [4, 4, 4]
    assert len({*named[0], *named[1], *named[2]}) == 12


def test_every_step_draws_its_rate_from_the_seed_alone(build):
    def drawn(*overrides):
        batches = build("training.tokens_per_image=[9, 4, 1]", *overrides)
        return [rate for step in range(60) for rate in batches.rates_of(step)]

    assert {drawn().count(rate) > 10 for rate in (9, 4, 1)} == {True}
    assert drawn() == drawn() != drawn("seed=2")
    assert build().rates_of(0) == [None]


def test_a_step_at_every_rate_takes_the_same_samples_at_each(build):
    batches = build("training.tokens_per_image=[9, 4, 1]", "training.every_rate=true")
    plain, image = build(), batches.processor.image_token_id
    assert batches.num_places == 3 * plain.num_places == 3 * len(plain.order)
    for start in range(0, plain.num_places, 4):
        expected = [plain.read(plain.order[place]).id for place in range(start, start + 4)]
        assert batches.ids(start // 4) == expected
        said = plain.at(range(start, start + 4))["labels"]
        for turn, rate in enumerate((9, 4, 1)):
            batch = batches.at(range(3 * start + 4 * turn, 3 * start + 4 * turn + 4))
            assert batch["tokens_per_image"] == rate
            assert (batch["input_ids"] == image).sum() == rate * len(batch["pixel_values"])
            assert batch["labels"][batch["labels"] >= 0].tolist() == said[said >= 0].tolist()
    assert list(batches.keys()) == list(plain.keys())


def test_all_places_of_a_step_have_its_rate(build):
    batches = build("training.tokens_per_image=[9, 4]")
    image = batches.processor.image_token_id
    for step in range(3):
        (rate,) = batches.rates_of(step)
        for half in (0, 2):
            batch = batches.at([4 * step + half, 4 * step + half + 1])
            assert batch["tokens_per_image"] == rate
            assert (batch["input_ids"] == image).sum() == rate * len(batch.get("pixel_values", ()))
