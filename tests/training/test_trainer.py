"""What `train` promises: a run that can be repeated, interrupted, resumed and trusted, whatever is cached or watched."""

import json
import os
import pickletools
import random
import signal
import time
import zipfile
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vision_remember.model import VisionRememberForConditionalGeneration, VisionRememberProcessor
from vision_remember.model.chat import first_question
from vision_remember.model.engine import Engine, Request
from vision_remember.training import FeatureCache, TrainingInterrupted, train, trainer
from vision_remember.training.start import build_model
from vision_remember.training.watch import Progress

TRAIN_ALL = (
    "model.checkpoint=scratch",
    "training.trainable=[projector, refusion, language_model, encoder]",
    "training.learning_rates={projector: 0.01, refusion: 0.01, language_model: 0.001, encoder: 0.001}",
)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, two: Path) -> None:
    assert metrics(one) == metrics(two)
    mine, theirs = weights(one), weights(two)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture
def kill_at_step(monkeypatch):
    """Trains in a child process and sends it a signal as soon as a step's line is on the disk; returns its exit code."""

    def run(recipe, folder: Path, step: int, number: int, *, resume: bool = False, wait: float = 0.0) -> int:
        child = get_context("fork").Process(
            target=train, args=(recipe,), kwargs={"output_dir": folder, "resume": resume}
        )
        child.start()
        while child.is_alive():
            if (folder / "metrics.jsonl").exists() and any(line["step"] >= step for line in whole_lines(folder)):
                time.sleep(wait)
                os.kill(child.pid, number)
                break
            time.sleep(0.002)
        child.join(60)
        return child.exitcode

    return run


def whole_lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]]


def test_a_run_leaves_a_model_and_everything_needed_to_repeat_it(make_recipe, tmp_path):
    recipe = make_recipe("training.report_to=[tensorboard]")
    model_folder = train(recipe, output_dir=tmp_path / "run")
    VisionRememberForConditionalGeneration.from_pretrained(model_folder)
    VisionRememberProcessor.from_pretrained(model_folder)
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["seed"] == 1 and run["versions"]["torch"] == torch.__version__ and run["must_agree"]["data"]
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert json.loads((tmp_path / "run/summary.json").read_text())["samples"] == 24
    assert list((tmp_path / "run/tensorboard").glob("events.out.tfevents.*"))
    train(make_recipe(), output_dir=tmp_path / "again")
    assert_same_run(tmp_path / "run", tmp_path / "again")


def test_only_the_named_parts_change(make_recipe, tmp_path):
    recipe = make_recipe()
    before, _ = build_model(recipe)
    after = VisionRememberForConditionalGeneration.from_pretrained(train(recipe, output_dir=tmp_path / "run"))
    changed = {
        part: any(not torch.equal(old, new) for (_, old), (_, new) in zip(members, after.parts()[part], strict=True))
        for part, members in before.parts().items()
    }
    assert changed == {"encoder": False, "projector": True, "refusion": True, "language_model": False}


def test_stage_two_starts_from_the_model_of_stage_one(make_recipe, tmp_path):
    align = train(make_recipe("training.steps=2"), output_dir=tmp_path / "align")
    overrides = [override for override in TRAIN_ALL if "checkpoint" not in override]
    recipe = make_recipe(*overrides, f"model.checkpoint={align}", "training.steps=2")
    model, _ = build_model(recipe)
    saved = VisionRememberForConditionalGeneration.from_pretrained(align).state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    train(recipe, output_dir=tmp_path / "instruct")
    with pytest.raises(ValueError, match="avg_pool.*mlp"):
        train(make_recipe(f"model.checkpoint={align}", "model.projector={type: mlp}"), output_dir=tmp_path / "other")


@pytest.mark.parametrize(
    ("cached", "parts"),
    [
        ("true", ()),
        ("false", TRAIN_ALL),
        ("false", (*TRAIN_ALL, "training.muon_rates={refusion: 0.02, encoder: 0.01}")),
    ],
    ids=["cached", "all parts", "muon"],
)
def test_a_run_killed_at_random_steps_ends_as_the_uninterrupted_one(make_recipe, tmp_path, kill_at_step, cached, parts):
    recipe = make_recipe(*parts, f"training.cache_features={cached}", "training.steps=9", "training.save_every=1")
    train(recipe, output_dir=tmp_path / "whole")
    run = tmp_path / "killed"
    chance = random.Random(7)
    for step in sorted(chance.sample(range(1, 8), 3)):
        assert (
            kill_at_step(recipe, run, step, signal.SIGKILL, resume=True, wait=chance.random() * 0.1) == -signal.SIGKILL
        )
    train(recipe, output_dir=run, resume=True)
    assert_same_run(tmp_path / "whole", run)
    assert not list((run / "checkpoints").glob("*.tmp-*"))


@pytest.mark.parametrize(("cached", "every"), [("true", "false"), ("false", "false"), ("true", "true")])
def test_a_run_at_several_rates_keeps_them_when_it_is_killed(make_recipe, tmp_path, kill_at_step, cached, every):
    rates = ("training.tokens_per_image=[9, 4, 1]", f"training.every_rate={every}", "training.save_every=1")
    rates = (*rates, f"training.cache_features={cached}")
    recipe, run = make_recipe(*rates), tmp_path / "killed"
    model_folder = train(recipe, output_dir=tmp_path / "whole")
    kill_at_step(recipe, run, 3, signal.SIGKILL)
    train(recipe, output_dir=run, resume=True)
    assert_same_run(tmp_path / "whole", run)
    train(make_recipe(), output_dir=tmp_path / "one rate")
    assert metrics(tmp_path / "whole") != metrics(tmp_path / "one rate")
    page = Image.new("RGB", (48, 48), "red")
    asked = [Request(first_question("Which colour?", num_images=1), [page])]
    lengths = [
        Engine.load(model_folder, tokens_per_image=rate).answer(asked, max_new_tokens=1)[0].prompt_tokens
        for rate in (None, 9, 4, 1)
    ]
    assert [lengths[0] - length for length in lengths] == [0, 0, 5, 8]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_saves_exits_and_goes_on(make_recipe, tmp_path, kill_at_step, number, code):
    recipe = make_recipe("training.steps=40", "training.save_every=0")
    run = tmp_path / "run"
    assert kill_at_step(recipe, run, 2, number) == code
    stopped_after = len(metrics(run))
    assert 2 <= stopped_after < 40
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == [f"step-{stopped_after}"]
    train(recipe, output_dir=run, resume=True)
    assert [line["step"] for line in metrics(run)] == list(range(1, 41))


def test_a_signal_in_this_process_raises_and_leaves_the_handlers_as_they_were(make_recipe, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    step_end = Progress.on_step_end

    def interrupted(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "on_step_end", interrupted)
    with pytest.raises(TrainingInterrupted) as caught:
        train(make_recipe(), output_dir=tmp_path / "run")
    assert caught.value.code == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "run/model").exists()


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_the_result_is_the_same(
    make_recipe, tmp_path, caplog
):
    recipe = make_recipe()
    train(recipe, output_dir=tmp_path / "whole")
    run = tmp_path / "damaged"
    train(recipe, output_dir=run)
    (run / "summary.json").unlink()
    file = run / "checkpoints/step-6/optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    train(recipe, output_dir=run, resume=True)
    assert "falling back" in caplog.text
    assert_same_run(tmp_path / "whole", run)


def test_a_finished_run_is_left_as_it_is(make_recipe, tmp_path):
    recipe = make_recipe("training.steps=1")
    folder = train(recipe, output_dir=tmp_path / "run")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert train(recipe, output_dir=tmp_path / "run", resume=True) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_a_run_killed_after_its_last_checkpoint_only_writes_its_model(make_recipe, tmp_path):
    recipe, run = make_recipe(), tmp_path / "run"
    before = load_file(train(recipe, output_dir=run) / "model.safetensors")
    (run / "summary.json").unlink()
    (run / "model/model.safetensors").unlink()
    train(recipe, output_dir=run, resume=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(run).items())
    assert len(metrics(run)) == 6


def test_accumulated_micro_batches_are_the_big_batch(make_recipe, tmp_path):
    """Token-weighted: rows of unequal length, so a mean of means would differ. Tolerance: float32 sums in another order."""
    losses = []
    for size, accumulation in ((8, 1), (1, 8), (2, 4)):
        shape = (f"training.batch_size={size}", f"training.accumulation={accumulation}", "training.steps=3")
        train(make_recipe(*TRAIN_ALL, *shape), output_dir=tmp_path / f"{size}")
        losses.append([line["loss"] for line in metrics(tmp_path / f"{size}")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(make_recipe, tmp_path, monkeypatch):
    forward = VisionRememberForConditionalGeneration.forward
    calls = []

    def poisoned(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        calls.extend(["step"] if "labels" in kwargs else [])
        if len(calls) == 3:
            outputs.loss = outputs.loss * torch.nan
        return outputs

    monkeypatch.setattr(VisionRememberForConditionalGeneration, "forward", poisoned)
    with pytest.raises(ValueError, match=r"loss is nan at step 3; .*square-\d"):
        train(make_recipe(), output_dir=tmp_path / "run")
    named = json.loads((tmp_path / "run/non_finite.json").read_text())
    assert named["step"] == 3 and len(named["samples"]) == 4
    monkeypatch.setattr(VisionRememberForConditionalGeneration, "forward", forward)
    train(make_recipe(), output_dir=tmp_path / "run", resume=True)
    train(make_recipe(), output_dir=tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_shared_feature_cache_changes_nothing(make_recipe, tmp_path):
    recipe, cache = make_recipe("training.cache_features=true"), FeatureCache()
    for name in ("first", "second"):
        train(recipe, output_dir=tmp_path / name, feature_cache=cache)
    assert_same_run(tmp_path / "first", tmp_path / "second")
    train(make_recipe(), output_dir=tmp_path / "pixels")
    for one, two in zip(metrics(tmp_path / "first"), metrics(tmp_path / "pixels"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


def test_loader_workers_and_activation_checkpointing_change_nothing(make_recipe, tmp_path):
    train(make_recipe(*TRAIN_ALL), output_dir=tmp_path / "plain")
    train(make_recipe(*TRAIN_ALL, "training.num_workers=1"), output_dir=tmp_path / "workers")
    assert_same_run(tmp_path / "plain", tmp_path / "workers")
    train(make_recipe(*TRAIN_ALL, "training.activation_checkpointing=true"), output_dir=tmp_path / "recomputed")
    for one, two in zip(metrics(tmp_path / "plain"), metrics(tmp_path / "recomputed"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


def test_bfloat16_trains_on_a_cpu(make_recipe, tmp_path):
    train(make_recipe("training.precision=bfloat16", "training.steps=2"), output_dir=tmp_path / "run")
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "run").values())


@pytest.mark.parametrize("is_emulated", [True, False])
def test_a_cpu_that_only_emulates_bfloat16_is_told_of(make_recipe, tmp_path, monkeypatch, caplog, is_emulated):
    monkeypatch.setattr(trainer, "emulates_bfloat16", lambda: is_emulated)
    for precision in ("bfloat16", "float32"):
        train(make_recipe(f"training.precision={precision}", "training.steps=1"), output_dir=tmp_path / precision)
    assert caplog.text.count("float32 is several times as fast") == is_emulated


def test_rates_rise_fall_and_keep_their_proportion(make_recipe, tmp_path):
    rates = "training.learning_rates={projector: 0.01, refusion: 0.001}"
    train(make_recipe(rates, "training.steps=8", "training.warmup_ratio=0.25"), output_dir=tmp_path / "run")
    seen = [line["learning_rates"] for line in metrics(tmp_path / "run")]
    projector = [rate["projector"] for rate in seen]
    assert projector[0] == 0 and max(projector) == projector[2] == pytest.approx(0.01)
    assert projector[2:] == sorted(projector[2:], reverse=True)
    assert all(rate["projector"] == pytest.approx(10 * rate["refusion"]) for rate in seen)


def test_muon_has_its_own_rate_under_the_same_schedule(make_recipe, tmp_path):
    train(make_recipe(), output_dir=tmp_path / "adamw")
    train(make_recipe("training.muon_rates={refusion: 0.02}"), output_dir=tmp_path / "muon")
    adamw, muon = metrics(tmp_path / "adamw"), metrics(tmp_path / "muon")
    seen = [line["learning_rates"] for line in muon if line["learning_rates"]["refusion"]]
    assert seen and all(rates["refusion muon"] == pytest.approx(2 * rates["refusion"]) for rates in seen)
    assert adamw[0]["loss"] == muon[0]["loss"] and adamw[-1]["loss"] != muon[-1]["loss"]


def test_no_file_of_a_run_is_a_pickle(make_recipe, tmp_path):
    train(make_recipe("training.report_to=[tensorboard]"), output_dir=tmp_path / "run")
    for path in (path for path in (tmp_path / "run").rglob("*") if path.is_file()):
        assert path.suffix in (".json", ".jsonl", ".safetensors", ".yaml", ".jinja", "") or "tfevents" in path.name, (
            path
        )
        assert not zipfile.is_zipfile(path)
        with pytest.raises(ValueError):
            list(pickletools.genops(path.read_bytes() or b"{"))


def test_a_disk_too_small_for_the_checkpoints_is_refused_at_the_start(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"1,000 bytes free; 3 checkpoints and a model need [\d,]+"):
        train(make_recipe(), output_dir=tmp_path / "run")


def test_a_run_without_a_folder_is_refused(make_recipe):
    with pytest.raises(ValueError, match="names no output_dir"):
        train(make_recipe())
