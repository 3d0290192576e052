"""The time, for work that may still be under way on a GPU."""

import time

import torch


def now(device: torch.device) -> float:
    """Seconds of a clock that only runs forward, read once a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
