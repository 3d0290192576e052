"""A run on a GPU is the run on a CPU up to rounding, and goes on where it was killed."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.training.test_trainer import weights, whole_lines
from vision_remember.training import train

pytestmark = pytest.mark.gpu
MUON = "training.muon_rates={projector: 0.02, refusion: 0.02}"


def started(recipe_file: Path, folder: Path, *overrides: str, **environment: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "vision_remember_cli",
        "train",
        str(recipe_file),
        f"output_dir={folder}",
        *overrides,
    ]
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in whole_lines(folder)]


@pytest.mark.parametrize("cached", ["true", "false"])
def test_a_run_learns_what_it_learns_on_a_cpu(recipe_file, make_recipe, tmp_path, cached):
    overrides = (f"training.cache_features={cached}",)
    assert started(recipe_file, tmp_path / "cpu", *overrides, CUDA_VISIBLE_DEVICES="").wait() == 0
    train(make_recipe(*overrides), output_dir=tmp_path / "gpu")
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-3)
    assert json.loads((tmp_path / "gpu/run.json").read_text())["device"] == torch.cuda.get_device_name()


def test_a_killed_run_goes_on_as_if_it_had_not_been(recipe_file, make_recipe, tmp_path):
    overrides = (MUON, "training.steps=60", "training.save_every=1")
    recipe, killed = make_recipe(*overrides), tmp_path / "killed"
    train(recipe, output_dir=tmp_path / "whole")
    process = started(recipe_file, killed, *overrides)
    while process.poll() is None and not ((killed / "metrics.jsonl").exists() and len(losses(killed)) >= 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (killed / "model").exists()
    train(recipe, output_dir=killed, resume=True)
    assert losses(killed) == pytest.approx(losses(tmp_path / "whole"), rel=1e-2)
    assert weights(killed).keys() == weights(tmp_path / "whole").keys()


def test_all_parts_learn_in_bfloat16(make_recipe, tmp_path):
    everything = (
        "model.checkpoint=scratch",
        "training.precision=bfloat16",
        "training.trainable=[encoder, projector, refusion, language_model]",
        "training.learning_rates={encoder: 0.001, projector: 0.01, refusion: 0.01, language_model: 0.001}",
        "training.activation_checkpointing=true",
        MUON,
    )
    train(make_recipe(*everything), output_dir=tmp_path / "run")
    assert len(losses(tmp_path / "run")) == 6 and all(map(math.isfinite, losses(tmp_path / "run")))
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())
