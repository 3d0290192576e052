"""The time, for work that may still be under way on a GPU."""

import time

import torch


def now() -> float:
    """Seconds of a clock that only runs forward, read once the GPU, if there is one, has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
