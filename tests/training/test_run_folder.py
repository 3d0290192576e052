import pytest

from vision_remember.training import run_folder


def test_two_writers_on_one_folder_are_one_too_many(tmp_path):
    with run_folder.locked(tmp_path):
        with pytest.raises(ValueError, match=r"another process \(pid \d+, started"):
            with run_folder.locked(tmp_path):
                pytest.fail("both write")
    with run_folder.locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        with run_folder.locked(tmp_path / "file" / "run"):
            pass


def test_a_folder_with_other_peoples_files_is_refused(tmp_path, make_recipe):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"holds thesis\.tex"):
        run_folder.prepare(tmp_path / "run", make_recipe(), resume=True)


def test_a_run_that_took_no_step_may_be_started_anew_with_another_recipe(tmp_path, make_recipe):
    folder = tmp_path / "run"
    folder.mkdir()
    run_folder.prepare(folder, make_recipe(), resume=False)
    run_folder.prepare(folder, make_recipe("training.steps=9"), resume=False)
    assert "steps: 9" in (folder / "recipe.yaml").read_text()


def test_a_started_run_is_only_resumed_and_only_with_its_own_recipe(tmp_path, make_recipe):
    folder = tmp_path / "run"
    folder.mkdir()
    run_folder.prepare(folder, make_recipe(), resume=False)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="already holds a run"):
        run_folder.prepare(folder, make_recipe(), resume=False)
    with pytest.raises(ValueError, match=r"training\.batch_size was 4, is 8.*"):
        run_folder.prepare(folder, make_recipe("training.batch_size=8"), resume=True)
    run_folder.prepare(folder, make_recipe("training.log_every=1", "training.save_every=5"), resume=True)


def test_changed_data_cannot_be_resumed(tmp_path):
    run_folder.identify(tmp_path, {"must_agree": {"data": "a"}})
    run_folder.identify(tmp_path, {"must_agree": {"data": "b"}})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="data was b when the run started and is c now"):
        run_folder.identify(tmp_path, {"must_agree": {"data": "c"}})
