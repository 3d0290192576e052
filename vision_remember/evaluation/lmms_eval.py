"""Our models inside lmms-eval: `lmms-eval --model vision_remember --model_args pretrained=FOLDER --tasks ...`, without a server.

lmms-eval finds `MANIFEST` by the entry point `lmms_eval.models`. Answers come from the engine that `ask` and `evaluate` use, in batches,
greedily; a task that asks for sampling or beams is refused rather than answered otherwise. `TASKS` is a folder for `--include_path` with
an offline task over the synthetic documents. lmms-eval is never a dependency: installed plainly it replaces torch (`docs/benchmarks.md`).

Source: lmms-eval 0.7.3, `lmms_eval/api/model.py`, `models/registry_v2.py`, `protocol.py`.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from vision_remember.data.images import decode_image
from vision_remember.model.engine import DEFAULT_NEW_TOKENS, Engine, Request

MANIFEST = ModelManifest(
    model_id="vision_remember", chat_class_path="vision_remember.evaluation.lmms_eval.VisionRemember"
)
TASKS = Path(__file__).parent / "lmms_eval_tasks"


class VisionRemember(lmms):
    """A model of this package, as lmms-eval asks it.

    Args:
        pretrained: model folder, hub id, or `embedded/NAME`.
        batch_size: prompts per batch; does not change an answer.
        device: as torch names it; None takes the first GPU if there is one, else the CPU.

    Raises:
        ValueError: started as one of several processes.
    """

    is_simple = False

    def __init__(
        self, pretrained: str = "embedded/llava_vr_tiny", batch_size: int | str = 16, device: str | None = None
    ) -> None:
        super().__init__()
        if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
            raise ValueError(f"{processes} processes were launched, this model runs in 1: start lmms-eval plainly")
        self.engine = Engine.load(pretrained, device=device)
        self.batch_size = int(batch_size)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the greedy answer to every request, in order.

        Args:
            requests: instances of lmms-eval; `args` is (context, doc_to_messages, generation options, document id, task, split).

        Raises:
            ValueError: a request that brings a video or sound, or asks for sampling or beams.
        """
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[_new_tokens(request.args[2])].append(index)
        answers = [""] * len(requests)
        for longest, members in groups.items():
            for start in range(0, len(members), self.batch_size):
                batch = members[start : start + self.batch_size]
                asked = [self._request(requests[index]) for index in batch]
                said = self.engine.answer(asked, max_new_tokens=longest, batch_size=self.batch_size)
                for index, answer in zip(batch, said, strict=True):
                    answers[index] = _until(answer.text, requests[index].args[2].get("until") or ())
        return answers

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused: tasks of several rounds are not supported."""
        raise NotImplementedError("vision_remember answers tasks of one round; choose a task with generate_until")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refused: choices are asked for as answers."""
        raise NotImplementedError("vision_remember answers with text; choose a task with generate_until")

    def _request(self, request: Any) -> Request:
        _, doc_to_messages, _, document, task, split = request.args
        return chat_request(doc_to_messages(self.task_dict[task][split][document]))


def chat_request(messages: Iterable[Mapping[str, Any]]) -> Request:
    """Return lmms-eval's messages as the engine is asked: a text that follows an image in a user turn begins on a new line.

    Args:
        messages: `{"role", "content": [{"type": "text", "text"} or {"type": "image", "url": picture}]}`.

    Raises:
        ValueError: a part is neither text nor image.
    """
    images, asked = [], []
    for message in messages:
        parts: list[dict[str, str]] = []
        for part in message["content"]:
            if part["type"] == "image":
                images.append(decode_image(part["url"]))
                parts.append({"type": "image"})
            elif part["type"] == "text":
                follows_image = bool(parts) and parts[-1]["type"] == "image"
                parts.append({"type": "text", "text": "\n" * follows_image + part["text"].strip()})
            else:
                raise ValueError(f"a {part['type']} part in a question; this model reads text and images")
        asked.append({"role": message["role"], "content": parts})
    return Request(asked, images)


def _new_tokens(options: Mapping[str, Any]) -> int:
    if options.get("do_sample") or (options.get("num_beams") or 1) > 1:
        raise ValueError(
            f"generation options {dict(options)}: answers are greedy; set do_sample to false, num_beams to 1"
        )
    return int(options.get("max_new_tokens") or DEFAULT_NEW_TOKENS)


def _until(text: str, stops: str | Sequence[str]) -> str:
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0]
    return text
