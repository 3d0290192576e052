"""The one way to get answers: `ask`, evaluation and serving all generate here, so what is measured is what is served.

Answers are greedy, in left-padded batches; a batch of eight says what eight single calls say. A streamed answer is held back inside a
character whose bytes span several tokens, so that its joined pieces are the answer.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, StoppingCriteriaList

from vision_remember.geometry import Grid
from vision_remember.model.chat import Messages, first_question
from vision_remember.model.embedded import model_path
from vision_remember.model.modeling import VisionRememberForConditionalGeneration
from vision_remember.model.pixels import as_rgb
from vision_remember.model.processing import VisionRememberProcessor
from vision_remember.model.token_queue import TokenQueue

DEFAULT_NEW_TOKENS = 64
UNFINISHED = "\ufffd"  # what a decoder shows for the first bytes of a character


class Request(NamedTuple):
    """One question: messages in Hugging Face chat format, and the images of their empty slots in reading order."""

    messages: Messages
    images: Sequence[Image.Image] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said.

    Attributes:
        text: Without control tokens, and without an unfinished character at the end.
        prompt_tokens: Tokens of the prompt, vision tokens included.
        new_tokens: Tokens generated, the end token included.
    """

    text: str
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """An answer, and where its vision tokens looked when they remembered.

    Attributes:
        answer: The answer.
        image: The page on the encoder's canvas, as the model saw it; of an any-resolution model its base view.
        attention: Decoder layer (-1: before layer 0) -> float[V, H, W], weights over the W patches of every token's window.
        patch_grid: Grid of the encoder's patches.
        token_grid: Grid of the V vision tokens.
    """

    answer: Answer
    image: Image.Image
    attention: dict[int, Tensor]
    patch_grid: Grid
    token_grid: Grid


class Engine:
    """A model and its processor, ready to answer.

    Args:
        model: Put into eval mode.
        processor: The processor saved with the model.
        tokens_per_image: Vision tokens V that stand for an image; None: as many as the projector makes by itself.

    Raises:
        ValueError: The projector cannot make that number.
    """

    def __init__(
        self,
        model: VisionRememberForConditionalGeneration,
        processor: VisionRememberProcessor,
        *,
        tokens_per_image: int | None = None,
    ):
        self.model = model.eval()
        self.token_grid = model.model.grid_of(tokens_per_image)
        self.processor = processor.at(tokens_per_image)
        ends = model.generation_config.eos_token_id or []
        self._end_ids = sorted({processor.template.end_id, *([ends] if isinstance(ends, int) else ends)})

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        tokens_per_image: int | None = None,
        with_weights: bool = True,
    ) -> "Engine":
        """Load a model and its processor.

        Args:
            path: A folder or hub id with what `save_pretrained` of model and processor wrote, or `embedded/NAME`.
            device: None takes the first GPU if there is one, else the CPU.
            tokens_per_image: Vision tokens V that stand for an image; None: as many as the projector makes by itself.
            with_weights: False reads no weights and takes fresh ones, which costs as much to run and says nothing of use.
        """
        path = model_path(path)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = VisionRememberForConditionalGeneration
        model = kind.from_pretrained(path) if with_weights else kind(kind.config_class.from_pretrained(path))
        processor = VisionRememberProcessor.from_pretrained(path)
        return cls(model.to(device), processor, tokens_per_image=tokens_per_image)

    def ask(self, image: Image.Image | bytes | str | Path, question: str) -> str:
        """Ask one question about one image.

        Args:
            image: A PIL image, encoded bytes or a file.
            question: Plain text.
        """
        request = Request(first_question(question, num_images=1), [as_rgb(image, "image")])
        return self.answer([request])[0].text

    def answer(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        batch_size: int = 16,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Answer greedily, in the order of the requests.

        Args:
            requests: Any number; images are read one batch at a time.
            max_new_tokens: Most tokens per answer.
            batch_size: Requests per call of the model.
            progress: Called with the number of requests of each finished batch.

        Raises:
            ValueError: A request is malformed or leaves no room for an answer.
        """
        answers: list[Answer] = []
        for start in range(0, len(requests), batch_size):
            batch = requests[start : start + batch_size]
            inputs = self._inputs(batch, max_new_tokens)
            sequences = self._generate(inputs, max_new_tokens)
            new = sequences[:, inputs["input_ids"].shape[1] :].tolist()
            for ids, length in zip(new, inputs["attention_mask"].sum(1).tolist(), strict=True):
                spoken = self._until_end(ids)
                answers.append(Answer(text=self._text(spoken), prompt_tokens=length, new_tokens=len(spoken)))
            if progress is not None:
                progress(len(batch))
        return answers

    def stream(self, request: Request, *, max_new_tokens: int = DEFAULT_NEW_TOKENS) -> Iterator[str]:
        """Answer one request piece by piece; closing the iterator stops the model after its current token.

        Args:
            request: The question.
            max_new_tokens: Most tokens of the answer.

        Returns:
            Pieces of text whose concatenation is what `answer` returns.
        """
        inputs = self._inputs([request], max_new_tokens)
        tokens = TokenQueue()

        def run() -> None:
            try:
                self._generate(
                    inputs, max_new_tokens, streamer=tokens, stopping_criteria=StoppingCriteriaList([tokens])
                )
            except BaseException as error:  # raised again where the pieces are read
                tokens.items.put(error)

        worker = threading.Thread(target=run, daemon=True)
        worker.start()
        ids: list[int] = []
        text = ""
        try:
            for token in tokens:
                ids.append(token)
                whole = self._text(self._until_end(ids))
                if len(whole) > len(text):
                    yield whole[len(text) :]
                    text = whole
        finally:
            tokens.is_abandoned.set()
            worker.join()

    def explain(self, request: Request, *, max_new_tokens: int = DEFAULT_NEW_TOKENS) -> Explanation:
        """Answer a question about one image and report where its vision tokens looked.

        Args:
            request: A question with exactly one image.
            max_new_tokens: Most tokens of the answer.

        Raises:
            ValueError: Another number of images, or a model whose re-fusion records no attention.
        """
        model = self.model.model
        inputs = self._inputs([request], max_new_tokens)
        if (count := len(inputs.get("pixel_values", ()))) != 1:
            raise ValueError(f"explain draws one image, the request has {count}; ask about one image")
        with torch.inference_mode():
            recorded = self.model(**inputs, output_remember_attentions=True, logits_to_keep=1).remember_attentions
        if not recorded:
            raise ValueError(
                f"re-fusion {self.model.config.refusion['type']} records no attention; explain a remember model"
            )
        [answer] = self.answer([request], max_new_tokens=max_new_tokens)
        return Explanation(
            answer=answer,
            image=self.processor.canvases(self.processor.images_of(*request))[0],
            attention={
                layer: weights[: self.token_grid.num_cells].cpu()  # the base view comes first
                for layer, weights in zip(sorted(model.refusion.layers), recorded, strict=True)
            },
            patch_grid=model.config.patch_grid,
            token_grid=self.token_grid,
        )

    def _inputs(self, requests: Sequence[Request], max_new_tokens: int) -> BatchFeature:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; ask for at least 1")
        encodings = [
            self.processor.encode(request.messages, request.images or None, add_generation_prompt=True)
            for request in requests
        ]
        context = self.model.config.text_config.max_position_embeddings
        for index, encoding in enumerate(encodings):
            if len(encoding.input_ids) + max_new_tokens > context:
                raise ValueError(
                    f"requests[{index}] has {len(encoding.input_ids)} prompt tokens, with {max_new_tokens} new ones more than the "
                    f"context of {context}; shorten the prompt or the answer"
                )
        inputs = self.processor.pad(encodings, side="left")
        inputs.pop("labels")
        return inputs.to(self.model.device)

    def _generate(self, inputs: BatchFeature, max_new_tokens: int, **options) -> Tensor:
        return self.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=self._end_ids,
            pad_token_id=self.processor.template.pad_id,
            suppress_tokens=[self.processor.image_token_id],
            **options,
        )

    def _until_end(self, ids: list[int]) -> list[int]:
        """The tokens up to the first end token; the rest of a row is padding."""
        return next((ids[: place + 1] for place, token in enumerate(ids) if token in self._end_ids), ids)

    def _text(self, ids: list[int]) -> str:
        # Tokenizers that fall back to bytes spoil whole characters beside an unfinished one, so its tokens are left out, at most three.
        for count in range(len(ids), max(len(ids) - 4, -1), -1):
            text = self.processor.tokenizer.decode(
                ids[:count], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            if not text.endswith(UNFINISHED):
                return text
        return text.rstrip(UNFINISHED)
