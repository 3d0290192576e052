"""The processes of one run, started by `torchrun` or `accelerate launch`: who writes, who takes which sample, and what all agree on.

One process is the usual case: then nothing here communicates, and `first` simply calls. Every process sees the same folder. What a process
must tell the others are numbers and JSON, sent as tensors: torch's own way of sending objects is a pickle.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from vision_remember.training.recipe import TrainingSection

# A process that is stopped or lost ends the run after this time; writing a checkpoint, for which the others wait, takes less.
PATIENCE = timedelta(minutes=15)


def join() -> None:
    """Finds the other processes of this run, where a launcher has started several: NCCL between GPUs, Gloo between CPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend(), timeout=PATIENCE)


def backend() -> str:
    """What processes of this machine talk through."""
    return "nccl" if torch.cuda.is_available() else "gloo"


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(training: TrainingSection, num_processes: int) -> tuple[int, int]:
    """What one process does of an optimizer step, so that the step itself does not depend on how many there are.

    The micro-batches of a step are dealt out; where there are more processes than micro-batches, those are cut. With `batch_size` 32 and
    `accumulation` 8, one process takes (32, 8), 8 processes take (32, 1) and 16 take (16, 1). With `every_rate` there are as many more
    micro-batches as there are rates.

    Returns:
        Samples of a micro-batch, and micro-batches of a step, of one process.

    Raises:
        ValueError: the samples of a step cannot be dealt out evenly.
    """
    size, count = training.batch_size, training.accumulation * training.rates_per_step
    pieces = num_processes // math.gcd(num_processes, count)  # of every micro-batch
    if size % pieces:
        raise ValueError(
            f"{num_processes} processes cannot share steps of {count} micro-batches of {size} samples evenly; make "
            f"training.accumulation a multiple of {num_processes}, or training.batch_size one of {pieces}"
        )
    return size // pieces, count * pieces // num_processes


def total(value: float) -> float:
    """The sum over all processes."""
    return _reduced(value, dist.ReduceOp.SUM)


def largest(value: float) -> float:
    """The largest over all processes."""
    return _reduced(value, dist.ReduceOp.MAX)


def first(act: Callable[[], int | None]) -> int:
    """Lets the first process act while the others wait.

    Returns:
        The whole number that it returned, 0 for None, in every process.

    Raises:
        ValueError: it failed; in the first process, its own error.
    """
    answer, error = 0, None
    if rank() == 0:
        try:
            answer = act() or 0
        except Exception as failure:  # raised again below, once the others know
            error = failure
    failed = total(float(error is not None))
    if error is not None:
        raise error
    if failed:
        raise ValueError("the first process of this run could not go on; its message says why")
    return round(total(answer))


def gathered(value: Any) -> list[Any]:
    """What JSON can hold, of every process in their order."""
    if size() == 1:
        return [value]
    content = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=_device())
    longest = round(largest(len(content)))
    padded = content.new_full((longest,), ord(" "))
    padded[: len(content)] = content
    everyone = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(everyone, padded)
    return [json.loads(bytes(one.tolist())) for one in everyone]


def _reduced(value: float, operation: Any) -> float:
    if size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=_device())
    dist.all_reduce(tensor, operation)
    return tensor.item()


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
