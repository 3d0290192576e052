"""The doors that `transformers` knows of a processor: prompts of one question, chats, and counts for serving engines.

Behind them are the same two steps as in training, `encode` and `pad` of `processing.py`. What a door of the library offers and this
template cannot honour is refused by name.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData

from vision_remember.model.batch import IGNORED_LABEL, Encoding, share_out
from vision_remember.model.chat import ChatTemplate, Messages, RenderedChat, first_question
from vision_remember.model.kept_template import KeptTemplate
from vision_remember.model.pixels import all_rgb, frames_as_images, size_of
from vision_remember.tiling import Tiling


class ProcessorDoors(ProcessorMixin):
    """`__call__` and `apply_chat_template` over the steps that the subclass takes."""

    template: ChatTemplate | KeptTemplate
    tiling: Tiling

    def encode(
        self,
        messages: Messages,
        images: Sequence[Image.Image] | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
    ) -> Encoding:
        """Encode one conversation."""
        raise NotImplementedError

    def pad(self, encodings: Sequence[Encoding], *, side: Literal["left", "right"]) -> BatchFeature:
        """Pad conversations into a batch."""
        raise NotImplementedError

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixels of images."""
        raise NotImplementedError

    def __call__(
        self,
        images=None,
        text=None,
        *,
        return_tensors="pt",
        padding=True,
        padding_side="left",
        add_generation_prompt=True,
    ) -> BatchFeature:
        """Prepare prompts of one question each (`first_question`): the images first, then the text, taken word for word.

        Args:
            images: One image, or a list for one text, or a list of lists for several texts.
            text: One text or a list. What `apply_chat_template(tokenize=False)` returned is encoded as the chat it came from.
            return_tensors: "pt".
            padding: True or "longest": a batch is always padded.
            padding_side: "left".
            add_generation_prompt: Open the assistant turn after a plain text.

        Returns:
            `input_ids`, `attention_mask` and `pixel_values`; only the last when there is no text.
        """
        _only_tensors(return_tensors, padding, padding_side)
        images = [] if images is None else images if isinstance(images, (list, tuple)) else [images]
        if text is None:
            images = all_rgb(images)
            sizes = {"image_sizes": torch.tensor([size_of(image) for image in images])} if self.tiling.is_anyres else {}
            return BatchFeature({"pixel_values": self.pixels(images), **sizes})
        texts = [text] if isinstance(text, str) else list(text)
        encodings = [
            self.encode(text.messages, own or None, **text.options)
            if isinstance(text, RenderedChat)
            else self.encode(first_question(text, len(own)), own, add_generation_prompt=add_generation_prompt)
            for text, own in zip(texts, share_out(images, len(texts)), strict=True)
        ]
        return self._inputs(encodings)

    def apply_chat_template(
        self,
        conversation,
        chat_template=None,
        *,
        tools=None,
        documents=None,
        add_generation_prompt=False,
        continue_final_message=False,
        return_assistant_tokens_mask=False,
        tokenize=False,
        return_tensors="pt",
        return_dict=False,
        padding=True,
        padding_side="left",
        processor_kwargs=None,
        sanitize_control_tokens=True,
        load_audio_from_video=False,
    ):
        """Encode one conversation or a batch of them (left-padded), as `transformers` calls it.

        Args:
            conversation: Messages, or a list of conversations.
            chat_template: Must be left out; the template works on ids.
            tools: Must be left out; tool calls have no place in the template.
            documents: Must be left out, as tools.
            add_generation_prompt: End with the opening of an assistant turn.
            continue_final_message: Leave the last turn open.
            return_assistant_tokens_mask: Also return `assistant_masks` long[B, T], 1 on what the assistant says.
            tokenize: False returns the chat as a string to display; pass it on to `processor(text=...)` unchanged.
            return_tensors: "pt".
            return_dict: False returns `input_ids` alone.
            padding: As in `__call__`.
            padding_side: "left".
            processor_kwargs: May hold `images` (as in `__call__`), and repeat the three options of the batch.
            sanitize_control_tokens: True; text is always ordinary text here.
            load_audio_from_video: False; `transformers serve` says so with every request.

        Raises:
            ValueError: An option this template cannot honour.
        """
        options = {"return_tensors": return_tensors, "padding": padding, "padding_side": padding_side}
        options |= processor_kwargs or {}
        _only_tensors(*map(options.pop, ("return_tensors", "padding", "padding_side")))
        images = options.pop("images", None)
        refused = {"chat_template": chat_template, "tools": tools, "documents": documents, **options}
        refused["load_audio_from_video"] = load_audio_from_video or None
        if unusable := [name for name, value in refused.items() if value is not None]:
            raise ValueError(f"apply_chat_template cannot honour {', '.join(unusable)}: the template works on ids")
        if not sanitize_control_tokens:
            raise ValueError("sanitize_control_tokens=False is refused: text never becomes a control token")
        is_batch = bool(conversation) and isinstance(conversation[0], (list, tuple))
        chats = list(conversation) if is_batch else [conversation]
        open_end = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        if not tokenize:
            rendered = [self._render(chat, open_end) for chat in chats]
            return rendered if is_batch else rendered[0]
        shares = [None] * len(chats) if images is None else share_out(images, len(chats))
        encodings = [self.encode(chat, own, **open_end) for chat, own in zip(chats, shares, strict=True)]
        inputs = self._inputs(encodings, with_assistant_masks=return_assistant_tokens_mask)
        return inputs if return_dict else inputs["input_ids"]

    def _get_num_multimodal_tokens(self, image_sizes=None) -> MultiModalData:
        """Token counts that serving engines ask for before they have an image."""
        sizes = [tuple(size) for size in image_sizes or []]
        counts = [self.tiling.layout(size).num_tokens for size in sizes]
        return MultiModalData(num_image_tokens=counts, num_image_patches=[1] * len(sizes))

    def _inputs(self, encodings: Sequence[Encoding], *, with_assistant_masks: bool = False) -> BatchFeature:
        batch = self.pad(encodings, side="left")
        labels = batch.pop("labels")
        if with_assistant_masks:
            batch["assistant_masks"] = (labels != IGNORED_LABEL).long()
        return batch

    def _render(self, messages: Messages, options: dict[str, bool]) -> RenderedChat:
        images = frames_as_images(messages)
        self.template.encode(images)
        rendered = RenderedChat(super().apply_chat_template(images, tokenize=False, **options))
        rendered.messages, rendered.options = messages, options
        return rendered


def _only_tensors(return_tensors: str | None, padding: bool | str, padding_side: str) -> None:
    if return_tensors not in ("pt", "auto", None) or padding not in (True, "longest") or padding_side != "left":
        raise ValueError(
            "batches are torch tensors padded on the left: return_tensors='pt', padding=True, padding_side='left'; got "
            f"{return_tensors!r}, {padding!r}, {padding_side!r}"
        )
