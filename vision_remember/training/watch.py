"""Watching a run: one line of metrics per step, a progress bar, and signals that stop it at a step border.

Nothing here changes what is computed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from tqdm import tqdm
from transformers import TrainerCallback

from vision_remember.training import distributed

log = logging.getLogger(__name__)


class Metrics:
    """`metrics.jsonl`: step, loss, gradient norm and learning rates, written at every step.

    A resumed run drops the lines of steps it will take again, so the finished file is that of an uninterrupted run.

    Args:
        path: the file; None keeps the last figures and writes nothing.
        done: steps that are not taken again.
    """

    def __init__(self, path: Path | None, done: int):
        self.last: dict[str, Any] = {}
        self._file: IO[str] | None = None
        if path is None:
            return
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _step(line) <= done]
        fresh = path.with_name(f"{path.name}.tmp")
        fresh.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(fresh, path)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self.last = json.loads(kept[-1]) if kept else {}

    def write(self, **figures: Any) -> None:
        """Adds one line."""
        self.last = figures
        if self._file is not None:
            self._file.write(json.dumps(figures) + "\n")

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


class Progress(TrainerCallback):
    """Steps, samples per second, loss and time left: a bar on a terminal, a line every `log_every` steps elsewhere."""

    def __init__(self, metrics: Metrics, *, title: str, samples_per_step: int, log_every: int):
        self.metrics, self.title, self.samples_per_step, self.log_every = metrics, title, samples_per_step, log_every

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin, self.start_step = time.monotonic(), state.global_step
        self.bar = tqdm(
            desc=self.title,
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            disable=not sys.stderr.isatty(),
        )

    def on_step_end(self, args, state, control, **kwargs):
        done = state.global_step - self.start_step
        rate = done / (time.monotonic() - self.begin)
        figures = f"loss {self.metrics.last['loss']:.3f}, {rate * self.samples_per_step:.1f} samples/s"
        self.bar.set_postfix_str(figures, refresh=False)
        self.bar.update()
        if self.bar.disable and (state.global_step % self.log_every == 0 or state.global_step == state.max_steps):
            left = (state.max_steps - state.global_step) / rate
            step = f"{self.title}: step {state.global_step}/{state.max_steps}"
            print(f"{step}, {figures}, {tqdm.format_interval(left)} left", file=sys.stderr)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class Stopper(TrainerCallback):
    """Turns Ctrl-C and SIGTERM into a checkpoint at the next step border; a second one stops at once.

    Of several processes, any may hear the signal: all stop at the same border.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def agreed(self) -> int | None:
        """The signal that any process of this run has heard; all must ask at the same place."""
        self.signal = round(distributed.largest(self.signal or 0)) or None
        return self.signal

    def on_step_end(self, args, state, control, **kwargs):
        if self.agreed() is not None:
            control.should_save = True
            control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes over both signals, where this thread may."""
        try:
            before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # only the main thread hears signals
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise TrainingInterrupted(number)
        self.signal = number
        print("stopping after this step; once more stops at once, without saving", file=sys.stderr)


class TrainingInterrupted(SystemExit):
    """The run was stopped by a signal; the exit status is 130 for Ctrl-C and 143 for SIGTERM."""

    def __init__(self, number: int):
        super().__init__(128 + number)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # the half line of a killed writer
        return float("inf")
