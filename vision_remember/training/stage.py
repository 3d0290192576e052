"""The Hugging Face Trainer with what a stage needs and nothing it does not: groups per part, a watchdog, checkpoints without pickle.

Source: `transformers.Trainer` 5.23 for loop, accumulation, schedule and precision; the overridden methods are its own seams.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from vision_remember.training import checkpoint, distributed, state
from vision_remember.training.batches import Batches
from vision_remember.training.optimizer import build_optimizer
from vision_remember.training.recipe import Recipe
from vision_remember.training.watch import Metrics

LOOP = "trainer_state.json"


class StageTrainer(Trainer):
    """Trains the parts a recipe names.

    Args:
        model: with `requires_grad` already set.
        recipe: learning rates, steps, precision.
        batches: makes the batches; a place of the run comes once, so the Trainer sees a single epoch.
        metrics: gets one line per step.
        folder: of the run.
        facts: kept in the manifest of every checkpoint.
        elapsed: seconds that earlier processes spent on this run.
    """

    def __init__(
        self,
        model,
        recipe: Recipe,
        *,
        batches: Batches,
        metrics: Metrics,
        folder: Path,
        facts: dict[str, Any],
        elapsed: float,
    ):
        places: Any = range(batches.num_places)
        super().__init__(model, arguments(recipe, folder), data_collator=batches.at, train_dataset=places)
        self.remove_callback(PrinterCallback)
        self.recipe, self.batches, self.metrics, self.facts, self.folder = recipe, batches, metrics, facts, folder
        self._begin = time.monotonic() - elapsed
        self._step_loss = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds spent on this run, those before a resume included."""
        return time.monotonic() - self._begin

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """That of the recipe: a rate for each part."""
        self.optimizer = build_optimizer(self.model, self.model.parts(), self.recipe.training)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's own loss: the sum over target tokens divided by their number in the whole step, at least 1."""
        if "encoder" not in self.recipe.training.trainable:
            self.model.model.vision_tower.eval()  # a frozen encoder answers as it does when serving
        count = None if num_items_in_batch is None else num_items_in_batch.clamp(min=1)
        return super().compute_loss(model, {**inputs, "use_cache": False}, return_outputs, count)

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """Forward and backward of one micro-batch."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss += loss.item()
        return loss

    def floating_point_ops(self, inputs) -> int:
        """Not counted: the estimate walks over every module at every step."""
        return 0

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Safetensors and JSON only; the base class adds a pickle of its arguments."""
        self.model.save_pretrained(output_dir or self.args.output_dir)

    def _get_train_sampler(self, train_dataset=None) -> SequentialSampler:
        return SequentialSampler(range(self.batches.num_places))

    def _get_grad_norm(self, model, grad_norm=None):
        """The norm; what is not finite ends the run here, in every process and before it reaches the weights."""
        # A process's losses are made for gradients that are averaged over processes, so their mean is the loss of the step.
        loss = distributed.total(self._step_loss) / distributed.size()
        self._refuse_non_finite("loss", loss)
        norm = float(super()._get_grad_norm(model, grad_norm))
        self._refuse_non_finite("gradient norm", norm)
        rates = {group["part"]: group["lr"] for group in self.optimizer.param_groups}
        self.metrics.write(step=self.state.global_step + 1, loss=loss, grad_norm=norm, learning_rates=rates)
        self._step_loss = 0.0
        return norm

    def _refuse_non_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        step = self.state.global_step
        ids = [name for names in distributed.gathered(self.batches.ids(step)) for name in names]
        report = {"step": step + 1, what: str(value), "samples": ids}
        distributed.first(lambda: checkpoint.write_json(self.folder / "non_finite.json", report))
        raise ValueError(
            f"{what} is {value} at step {step + 1}; weights and optimizer are as they were before it. Samples of the step: "
            f"{', '.join(ids)}. Look at them, or lower the learning rate, and start from the last checkpoint"
        )

    def _save_checkpoint(self, model, trial) -> None:
        generators = distributed.gathered(state.rng_state())

        def write(folder: Path) -> None:
            state.write_state(folder, self.model, _inner(self.optimizer), self.lr_scheduler)
            for rank, own in enumerate(generators):
                (folder / _generators(rank)).write_text(json.dumps(own))
            self.state.save_to_json(str(folder / LOOP))

        def save() -> None:
            facts = {**self.facts, "elapsed": self.elapsed}
            checkpoint.save(self.folder / "checkpoints", self.state.global_step, write, facts=facts)

        distributed.first(save)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        state.read_weights(Path(resume_from_checkpoint), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        if checkpoint is not None:
            state.read_optimizer(Path(checkpoint), self.model, _inner(self.optimizer), self.lr_scheduler)

    def _load_rng_state(self, checkpoint) -> None:
        if checkpoint is not None:
            own = Path(checkpoint) / _generators(distributed.rank())
            # A run that goes on with more processes than wrote the checkpoint has no state for the newcomers.
            state.set_rng_state(json.loads((own if own.exists() else own.with_name(_generators(0))).read_text()))

    def _load_scaler(self, checkpoint) -> None:
        """Neither float32 nor bfloat16 scales the loss."""


def _generators(rank: int) -> str:
    """File of the random generators of one process."""
    return f"rng-{rank}.json" if rank else "rng.json"


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside accelerate's."""
    return optimizer.optimizer


def arguments(recipe: Recipe, folder: Path) -> TrainingArguments:
    """The recipe in the Trainer's words."""
    training = recipe.training
    size, accumulation = distributed.share(training, distributed.size())
    spoken = TrainingArguments(
        output_dir=str(folder),
        seed=recipe.seed,
        max_steps=training.steps,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=training.max_grad_norm,
        lr_scheduler_type="cosine",
        warmup_steps=training.warmup_ratio,
        logging_steps=training.log_every,
        logging_nan_inf_filter=False,
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        ddp_backend=distributed.backend() if distributed.size() > 1 else None,
        # A trained encoder has layers above the last level that is read, which no loss reaches.
        ddp_find_unused_parameters=True,
        bf16=training.precision == "bfloat16",
        activation_checkpointing=training.activation_checkpointing,
        dataloader_num_workers=training.num_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cache=True,  # what the saved config says; steps of training themselves keep no cache
        report_to=[name for name in training.report_to if name != "tensorboard"] or "none",
    )
    if spoken.n_gpu > 1:
        spoken._n_gpu = 1  # several GPUs in one process would multiply the batch
    return spoken
