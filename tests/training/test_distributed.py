"""Real processes on the loopback device that train one run together, against the same run in one process."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import fully_shard

from vision_remember.training import train
from vision_remember.training.distributed import join, share
from vision_remember.training.order import SampleOrder
from vision_remember.training.recipe import TrainingSection
from vision_remember.training.stage import StageTrainer
from vision_remember.training.start import build_model
from vision_remember.training.state import weights as all_weights

EVERYTHING = (
    "model.checkpoint=scratch",
    "training.trainable=[projector, refusion, language_model, encoder]",
    "training.learning_rates={projector: 0.01, refusion: 0.01, language_model: 0.001, encoder: 0.001}",
    "training.activation_checkpointing=true",
    "training.batch_size=2",
    "training.accumulation=2",
    "training.warmup_ratio=0.5",
)
SAME_GRADIENTS = 1e-6  # of the norm: float32 sums of the same terms in another order


@pytest.fixture
def make_recipe(make_recipe, squares, tmp_path):
    """Recipes over the squares, of which every second sample here is text alone: most micro-batches of one lack an image."""
    records = json.loads((squares / "data.json").read_text())
    for number, record in enumerate(records[:-1]):
        if number % 2:
            del record["image"]
            record["conversations"][0]["value"] = "Which colour do you like?"
    (tmp_path / "mixed.json").write_text(json.dumps(records))
    data = f"data.sources=[{{path: {tmp_path / 'mixed.json'}, images: {squares}}}]"
    return lambda *overrides: make_recipe(*EVERYTHING, data, *overrides)


def run(rank: int, size: int, port: int, folder: Path, recipe, resume: bool, signal_at: int | None) -> None:
    """One process of a run; it writes down gradients (before they are clipped) and weights of every step.

    In step `signal_at` the last process is told to end, as by `kill`.
    """
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launched.items()})
    clip = StageTrainer._clip_grad_norm

    def watched(self, model):
        seen = {f"gradient.{name}": p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        seen |= {f"weight.{name}": tensor.detach() for name, tensor in all_weights(self.model).items()}
        save_file(seen, folder.with_name(f"{folder.name}-{rank}-{self.state.global_step}.safetensors"))
        if self.state.global_step == signal_at and rank == size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return clip(self, model)

    StageTrainer._clip_grad_norm = watched
    train(recipe, output_dir=folder, resume=resume)


@pytest.fixture
def launch():
    """Starts the processes of a run; `finish` gives their exit codes."""
    started = []

    def start(recipe, folder: Path, size: int, *, resume: bool = False, signal_at: int | None = None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [
            get_context("fork").Process(target=run, args=(rank, size, port, folder, recipe, resume, signal_at))
            for rank in range(size)
        ]
        started.extend(ranks)
        for process in ranks:
            process.start()
        return ranks

    yield start
    for process in started:
        if process.is_alive():
            process.kill()


def finish(ranks) -> list[int]:
    for process in ranks:
        process.join(90)
    return [process.exitcode for process in ranks]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def model_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def at_step(folder: Path, rank: int, step: int, kind: str) -> dict[str, torch.Tensor]:
    seen = load_file(folder.with_name(f"{folder.name}-{rank}-{step}.safetensors"))
    return {name: tensor for name, tensor in seen.items() if name.startswith(kind)}


def wait_for_step(folder: Path, step: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        file = folder / "metrics.jsonl"
        if file.exists() and file.read_text().count("\n") >= step:
            return
        time.sleep(0.005)
    pytest.fail(f"no step {step} in {folder}")


def test_the_micro_batches_of_a_step_are_dealt_out_and_cut_where_they_must():
    def training(size: int, accumulation: int) -> TrainingSection:
        return TrainingSection(
            trainable=("projector",), learning_rates={}, steps=1, batch_size=size, accumulation=accumulation
        )

    assert share(training(32, 8), 1) == (32, 8)
    assert share(training(32, 8), 8) == (32, 1)
    assert share(training(32, 8), 16) == (16, 1)
    assert share(training(4, 6), 4) == (2, 3)
    elastic = dataclasses.replace(training(4, 1), tokens_per_image=(9, 4), every_rate=True)
    assert [share(elastic, processes) for processes in (1, 2, 4)] == [(4, 2), (4, 1), (2, 1)]
    with pytest.raises(
        ValueError, match=r"3 processes cannot share steps of 2 micro-batches of 4 samples.*multiple of 3"
    ):
        share(training(4, 2), 3)


# Micro-batches of 4 are cut in two, or dealt out whole; those of every rate are dealt out among the others.
@pytest.mark.parametrize(("accumulation", "every"), [(1, "false"), (2, "false"), (1, "true")])
def test_two_processes_take_the_steps_of_one(make_recipe, launch, tmp_path, accumulation, every):
    """Mixed rows, activation checkpointing, unequal numbers of target tokens in every micro-batch, and two compression rates."""
    shape = (f"training.batch_size={4 // accumulation}", f"training.accumulation={accumulation}")
    recipe = make_recipe("training.tokens_per_image=[9, 4]", f"training.every_rate={every}", *shape)
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert finish(launch(recipe, alone, 1)) == [0]
    assert finish(launch(recipe, together, 2)) == [0, 0]
    for step in range(recipe.training.steps):
        assert_equal(at_step(together, 0, step, ""), at_step(together, 1, step, ""))
    # The rate of the first step is 0, so the first two have the weights of one process; later ones differ by what Adam makes of rounding.
    for step in (0, 1):
        assert_equal(at_step(together, 0, step, "weight"), at_step(alone, 0, step, "weight"))
        mine, theirs = (at_step(folder, 0, step, "gradient") for folder in (alone, together))
        assert mine.keys() == theirs.keys()
        difference = sum((mine[name] - theirs[name]).double().square().sum() for name in mine).sqrt()
        assert difference <= SAME_GRADIENTS * sum(tensor.double().square().sum() for tensor in mine.values()).sqrt()
    for mine, theirs in zip(metrics(alone), metrics(together), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert json.loads((together / "summary.json").read_text())["samples"] == 24


def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_to_the_same_end(make_recipe, launch, tmp_path):
    recipe = make_recipe("training.steps=8", "training.batch_size=1", "training.save_every=0")
    assert finish(launch(recipe, tmp_path / "whole", 2)) == [0, 0]
    stopped = tmp_path / "stopped"
    assert finish(launch(recipe, stopped, 2, signal_at=2)) == [143, 143]
    done = len(metrics(stopped))
    assert 2 < done < 8 and [path.name for path in (stopped / "checkpoints").glob("step-*")] == [f"step-{done}"]
    assert sorted(path.name for path in stopped.glob("checkpoints/*/rng*")) == ["rng-1.json", "rng.json"]
    assert finish(launch(recipe, stopped, 2, resume=True)) == [0, 0]
    assert metrics(stopped) == metrics(tmp_path / "whole")
    assert_equal(model_of(stopped), model_of(tmp_path / "whole"))


def test_what_the_first_process_refuses_stops_all(make_recipe, launch, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine")
    assert finish(launch(make_recipe(), tmp_path / "taken", 2)) == [1, 1]
    assert [path.name for path in (tmp_path / "taken").iterdir() if path.name != "lock"] == ["thesis.tex"]


def test_a_process_that_is_killed_ends_the_run_without_half_a_checkpoint(make_recipe, launch, tmp_path):
    recipe = make_recipe("training.steps=200", "training.batch_size=1", "training.save_every=1")
    run_folder = tmp_path / "killed"
    ranks = launch(recipe, run_folder, 2)
    wait_for_step(run_folder, 3)
    ranks[1].kill()
    assert finish(ranks)[0] not in (0, None)
    assert not list((run_folder / "checkpoints").glob("*.tmp-*"))


@pytest.mark.slow
def test_a_run_changes_its_number_of_processes_and_keeps_its_order(make_recipe, launch, tmp_path):
    """Tolerance: Adam's first steps turn rounding of tiny gradients into whole steps."""
    recipe = make_recipe("training.steps=9", "training.save_every=1", "training.cache_features=false")
    assert finish(launch(recipe, tmp_path / "alone", 1)) == [0]
    changing = tmp_path / "changing"
    for size, step in ((1, 3), (2, 3), (1, None)):
        ranks = launch(recipe, changing, size, resume=True)
        if step is not None:
            wait_for_step(changing, step if size == 1 else 6)
            os.kill(ranks[0].pid, signal.SIGTERM)
        assert set(finish(ranks)) <= {143, 0}
    for mine, theirs in zip(metrics(tmp_path / "alone"), metrics(changing), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
def test_both_launchers_run_the_command_line(make_recipe, tmp_path, launcher):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(make_recipe("training.steps=2").to_yaml())
    cli = Path(__file__).parents[2] / "vision_remember_cli.py"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = {
        "torch.distributed.run": ["--nproc_per_node", "2", "--master_port", port],
        "accelerate.commands.launch": ["--cpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", port,
                                       "--mixed_precision", "no", "--dynamo_backend", "no"],
    }[launcher]  # fmt: skip
    command = [
        sys.executable,
        "-m",
        launcher,
        *processes,
        str(cli),
        "train",
        str(recipe),
        "--out",
        str(tmp_path / "run"),
    ]
    paths = {"PYTHONPATH": str(cli.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]
    assert done.stderr.count("step 2/2") == 1


def sharded(rank: int, port: int, folder: Path, recipe) -> None:
    """Two steps of a sharded model; each process takes every second sample."""
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    join()
    model, gradients = prepared(recipe)
    # Layers and the whole, never the tower itself: transformers finds what a tower may record by its class, and sharding changes that.
    for layer in (*model.model.vision_tower.encoder.layers, *model.model.language_model.layers, model):
        fully_shard(layer)
    for step, (batch, count) in enumerate(micro_batches(recipe, model, num_steps=2)):
        loss = model(**batch[rank], num_items_in_batch=count).loss * 2  # gradients are averaged over the processes
        loss.backward()
        whole = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}
        gradients(whole, folder / f"sharded-{rank}-{step}.safetensors")
    dist.destroy_process_group()


def prepared(recipe):
    model, _ = build_model(recipe)
    model.activation_checkpointing_enable()
    model.train()

    def write(found: dict[str, torch.Tensor], path: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, path)
        with torch.no_grad():  # plain gradient descent, so that rounding is not amplified
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.01 * parameter.grad)
                    parameter.grad = None

    return model, write


def micro_batches(recipe, model, num_steps: int):
    """Per step: two batches of two samples, and the number of target tokens of both."""
    from vision_remember.training.batches import Batches

    _, processor = build_model(recipe)
    batches = Batches(SampleOrder(recipe, 4 * num_steps), processor, recipe, Path(recipe.output_dir))
    for step in range(num_steps):
        keys = [batches.order[4 * step + place] for place in range(4)]
        pair = [batches.collate(keys[:2]), batches.collate(keys[2:])]
        yield pair, sum((batch["labels"] != -100).sum() for batch in pair)


def test_a_sharded_model_has_the_gradients_of_a_whole_one(make_recipe, tmp_path):
    """`fully_shard` on two processes, mixed rows, activation checkpointing, two steps."""
    recipe = make_recipe(f"output_dir={tmp_path / 'none'}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [get_context("fork").Process(target=sharded, args=(rank, port, tmp_path, recipe)) for rank in range(2)]
    for process in ranks:
        process.start()
    assert finish(ranks) == [0, 0]
    model, write = prepared(recipe)
    for step, (pair, count) in enumerate(micro_batches(recipe, model, num_steps=2)):
        for batch in pair:
            model(**batch, num_items_in_batch=count).loss.backward()
        whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        write(whole, tmp_path / f"whole-{step}.safetensors")
        for rank in range(2):
            parts = load_file(tmp_path / f"sharded-{rank}-{step}.safetensors")
            assert parts.keys() >= whole.keys()
            difference = sum((parts[name] - whole[name]).double().square().sum() for name in whole).sqrt()
            norm = sum(tensor.double().square().sum() for tensor in whole.values()).sqrt()
            assert difference <= SAME_GRADIENTS * norm
