"""How long a page and a question take until the first token can be chosen.

Rows are measured in turns, round by round, so that whatever else the machine does in the meantime falls on all of them alike.
"""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from vision_remember.evaluation.tasks import Question
from vision_remember.model.engine import Engine

WARM_UP, ROUNDS = 2, 21


def prefill_ms(engines: Mapping[str, Engine], question: Question, *, rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median prefill time of every engine in milliseconds: encoder, projector and decoder, for one prompt.

    Args:
        engines: by row name.
        question: one page and question; every engine builds its own prompt of it beforehand.
        rounds: measured rounds, after 2 that are thrown away.
    """
    inputs = {name: _prompt(engine, question) for name, engine in engines.items()}
    names = list(engines)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(WARM_UP + rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds = _timed(engines[name], inputs[name])
            if number >= WARM_UP:
                times[name].append(seconds)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def _prompt(engine: Engine, question: Question) -> dict[str, Any]:
    request = question.request()
    encoding = engine.processor.encode(request.messages, request.images, add_generation_prompt=True)
    batch = engine.processor.pad([encoding], side="left").to(engine.model.device)
    return {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values") if name in batch}


@torch.inference_mode()
def _timed(engine: Engine, inputs: Mapping[str, Any]) -> float:
    _synchronise(engine)
    start = time.perf_counter()
    engine.model(**inputs, use_cache=True, logits_to_keep=1)
    _synchronise(engine)
    return time.perf_counter() - start


def _synchronise(engine: Engine) -> None:
    if engine.model.device.type == "cuda":
        torch.cuda.synchronize(engine.model.device)
