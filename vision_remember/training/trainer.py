"""One run, from a recipe to a model folder, that may be killed at any moment and goes on as if it had not been.

recipe -> model, processor -> samples in their order -> (features, computed once) -> steps -> output_dir/model

Started by `torchrun` or `accelerate launch`, all processes run this together: the samples of a step are dealt out among them
(`distributed.share`), and the first process alone reads and writes the run folder's state, while the others wait.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from vision_remember.training import checkpoint, distributed, run_folder
from vision_remember.training.batches import Batches
from vision_remember.training.features import FeatureCache
from vision_remember.training.optimizer import emulates_bfloat16
from vision_remember.training.order import SampleOrder
from vision_remember.training.recipe import Recipe
from vision_remember.training.stage import StageTrainer
from vision_remember.training.start import build_model, check_rates, freeze
from vision_remember.training.watch import Metrics, Progress, Stopper, TrainingInterrupted

log = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    *,
    output_dir: str | Path | None = None,
    resume: bool = False,
    feature_cache: FeatureCache | None = None,
) -> Path:
    """Trains one stage.

    On a CPU every run uses torch's deterministic algorithms: a run that was killed and resumed ends with the weights, bit for bit, of one
    that was not (same machine, threads and libraries).

    Args:
        recipe: the run.
        output_dir: where it is kept; `recipe.output_dir` when None.
        resume: go on from the newest complete checkpoint of that folder; a finished run is left as it is.
        feature_cache: features of earlier runs of this process, read and added to when the recipe caches features.

    Returns:
        The folder of the trained model, `output_dir/model`, for `from_pretrained`.

    Raises:
        ValueError: recipe, data, folder, start model or number of processes do not fit (what and where), or loss or gradient is not
            finite (samples named).
        TrainingInterrupted: stopped by Ctrl-C or SIGTERM after saving a checkpoint.
    """
    if output_dir is None and recipe.output_dir is None:
        raise ValueError(f"recipe {recipe.name} names no output_dir; give one")
    folder = Path(output_dir or str(recipe.output_dir))
    _check_machine(recipe)
    distributed.join()
    distributed.share(recipe.training, distributed.size())
    with ExitStack() as held, _deterministic():

        def take() -> None:
            held.enter_context(run_folder.locked(folder))
            run_folder.prepare(folder, dataclasses.replace(recipe, output_dir=str(folder)), resume=resume)

        distributed.first(take)
        if not run_folder.is_finished(folder):
            _run(recipe, folder, FeatureCache() if feature_cache is None else feature_cache)
    return folder / "model"


def _run(recipe: Recipe, folder: Path, cache: FeatureCache) -> None:
    training = recipe.training
    model, processor = build_model(recipe)
    parameters = freeze(model, training)
    check_rates(model, training.tokens_per_image)
    order = SampleOrder(recipe, training.steps * training.batch_size * training.accumulation)
    must_agree = {"data": order.fingerprint, "processor": run_folder.digest(processor.tokenizer.get_vocab())}
    identity = {
        **run_folder.environment(recipe.seed),
        "parameters": parameters,
        "samples_per_epoch": order.epoch_length,
    }

    def open_run() -> int:
        run_folder.identify(folder, {"must_agree": must_agree, **identity})
        _check_room(folder, parameters)
        return _newest(folder / "checkpoints")

    done = distributed.first(open_run)
    newest = checkpoint.of_step(folder / "checkpoints", done)
    elapsed = checkpoint.read_manifest(newest)["elapsed"] if done else 0.0

    batches = Batches(order, processor, recipe, folder)
    begin = time.monotonic()
    if training.cache_features:
        _cache_features(model.to(_device()), batches, cache)
    features_seconds = time.monotonic() - begin

    metrics = Metrics(folder / "metrics.jsonl" if distributed.rank() == 0 else None, done=done)
    trainer = StageTrainer(
        model, recipe, batches=batches, metrics=metrics, folder=folder, facts=must_agree, elapsed=elapsed
    )
    stopper = Stopper()
    for callback in _callbacks(recipe, folder, metrics, stopper, done=done):
        trainer.add_callback(callback)
    try:
        with stopper.listening():
            trainer.train(resume_from_checkpoint=str(newest) if done else None)
    finally:
        metrics.close()
    if (number := stopper.agreed()) is not None:
        raise TrainingInterrupted(number)
    seconds = {"seconds": trainer.elapsed, "features_seconds": features_seconds}
    distributed.first(lambda: _finish(folder, recipe, model, processor, batches, metrics, **seconds))


def _finish(
    folder: Path, recipe: Recipe, model, processor, batches: Batches, metrics: Metrics, **seconds: float
) -> None:
    def write(target: Path) -> None:
        model.save_pretrained(target)
        processor.save_pretrained(target)
        checkpoint.write_json(target / run_folder.HISTORY, run_folder.history(folder, recipe))

    checkpoint.replace_folder(folder / "model", write)
    if batches.quarantine is not None:
        print(batches.quarantine.summary(), file=sys.stderr)
    samples = len(batches.order)
    summary = {
        "train_seconds": seconds["seconds"],
        "features_seconds": seconds["features_seconds"],
        "samples": samples,
        "samples_per_second": samples / seconds["seconds"],
        "loss": metrics.last["loss"],
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "quarantined": len(batches.quarantine.places()) if batches.quarantine else 0,
    }
    checkpoint.write_json(folder / run_folder.SUMMARY, summary)


def _cache_features(model, batches: Batches, cache: FeatureCache) -> None:
    keys = list(batches.keys())
    is_quiet = not sys.stderr.isatty() or distributed.rank() != 0
    with tqdm(total=len(keys), desc="features of the frozen encoder", unit="sample", disable=is_quiet) as bar:
        features = cache.fill(
            model.eval(), batches.processor, keys, batches.read, on_bad_sample=batches.set_aside, advance=bar.update
        )
    batches.use(features)


def _newest(folder: Path) -> int:
    """The step of the newest checkpoint whose files are what was written; 0 where there is none."""
    checkpoint.clean(folder)
    for path in checkpoint.candidates(folder):
        try:
            return checkpoint.verify(path)["step"]
        except ValueError as error:
            log.warning("%s: falling back to an older checkpoint", error)
    return 0


def _callbacks(
    recipe: Recipe, folder: Path, metrics: Metrics, stopper: Stopper, *, done: int
) -> Iterator[TrainerCallback]:
    training = recipe.training
    samples_per_step = training.batch_size * training.accumulation
    yield SaveEvery(training.save_every)
    yield stopper
    if distributed.rank() != 0:
        return
    yield Progress(metrics, title=recipe.name, samples_per_step=samples_per_step, log_every=training.log_every)
    if "tensorboard" in training.report_to:
        from torch.utils.tensorboard import SummaryWriter  # a second to import, for those who ask
        from transformers.integrations import TensorBoardCallback

        yield TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1))


class SaveEvery(TrainerCallback):
    """Asks for a checkpoint every so many steps; 0 never asks."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        if self.steps and state.global_step % self.steps == 0:
            control.should_save = True


def _check_machine(recipe: Recipe) -> None:
    if recipe.training.precision == "bfloat16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ValueError("training.precision is bfloat16, which this GPU does not compute; use float32")
    if recipe.training.precision == "bfloat16" and not torch.cuda.is_available() and emulates_bfloat16():
        log.warning("training.precision is bfloat16, which this CPU only emulates: float32 is several times as fast")


def _check_room(folder: Path, parameters: dict[str, dict[str, int]]) -> None:
    total, trainable = (sum(part[kind] for part in parameters.values()) for kind in ("total", "trainable"))
    one = 4 * (total + 2 * trainable)
    needed, free = one * (checkpoint.KEPT + 1) + 4 * total, shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder} has {free:,} bytes free; {checkpoint.KEPT + 1} checkpoints and a model need {needed:,}"
        )


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or not torch.cuda.is_available())
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
