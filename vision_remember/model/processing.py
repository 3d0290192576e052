"""The processor: messages and images in, ids and pixels out, by one path for training, evaluation and serving.

`encode` makes one conversation, `pad` a batch; the Hugging Face doors to the same two steps are in `doors.py`.
Image slots come from structured parts only (see `chat.py`): no text, whoever wrote it, can open one.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Literal

from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from vision_remember import plugins
from vision_remember.geometry import Grid
from vision_remember.model.batch import Encoding, pad
from vision_remember.model.canvases import Canvases
from vision_remember.model.chat import (
    CHAT_TEMPLATE,
    IMAGE_TOKEN,
    ChatTemplate,
    Messages,
    TokenizedChat,
    load_tokenizer,
)
from vision_remember.model.configuration import VisionRememberConfig
from vision_remember.model.doors import ProcessorDoors
from vision_remember.model.embedded import model_path
from vision_remember.model.kept_template import KeptTemplate
from vision_remember.model.pixels import all_rgb, carried_images, frames_as_images, load_image_processor, size_of
from vision_remember.tiling import Resolution, Size, Tiling


class VisionRememberProcessor(ProcessorDoors):
    """Image processor, tokenizer and id-level chat template of one model.

    Args:
        image_processor: The encoder's own.
        tokenizer: The language model's own, with the control tokens added (`load_tokenizer`).
        num_image_tokens: Vision tokens V per canvas, after the projector.
        image_size: Height and width of the encoder's canvas in pixels.
        views: Rows and columns of canvases of every enlarged page that the model reads beside the page itself.
        resolution: Fields of `tiling.Resolution`.
        token_grid: Rows and columns of the V tokens; None where they are a set, or where no tiles are laid together.
        keeps_template: Whether `chat_template` is another model's own and stays in use (`kept_template.py`).
        chat_template: Otherwise `CHAT_TEMPLATE`; it is stored beside the model for tools that display chats.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_image_tokens=None,
        image_size=None,
        views=(),
        resolution=None,
        token_grid=None,
        keeps_template=False,
        chat_template=None,
    ):
        if not keeps_template and chat_template not in (None, CHAT_TEMPLATE):
            raise ValueError(
                "a changed chat_template would not reach the model: the template works on ids (model/chat.py)"
            )
        super().__init__(image_processor, tokenizer, chat_template=chat_template if keeps_template else CHAT_TEMPLATE)
        self.num_image_tokens = num_image_tokens
        self.image_size = list(image_size)
        self.views = [list(view) for view in views]
        self.resolution = resolution or {"mode": "pad"}
        self.token_grid = token_grid
        self.keeps_template = keeps_template
        self.tokens_per_image = None  # see `at`
        tokenizer.padding_side = "left"  # not saved with a tokenizer, and a pipeline pads its batches by it
        self.image_token = IMAGE_TOKEN
        self.tiling = Tiling(
            resolution=plugins.strict_config(Resolution, self.resolution, where="resolution"),
            canvas=(self.image_size[0], self.image_size[1]),
            token_grid=Grid(1, num_image_tokens) if token_grid is None else Grid(*token_grid),
            is_set=token_grid is None,
        )
        # At any resolution a slot becomes as many tokens as its image asks for, once that is known.
        length = 1 if self.tiling.is_anyres else num_image_tokens
        if keeps_template:
            self.template = KeptTemplate(tokenizer, chat_template, length)
        else:
            self.template = ChatTemplate(tokenizer, length)
        self.image_token_id = self.template.image_token_id
        self._canvases = Canvases(
            image_processor=image_processor, tiling=self.tiling, views=tuple(Grid(*view) for view in self.views)
        )

    @classmethod
    def from_backbones(cls, vision: str, text: str, config: VisionRememberConfig) -> "VisionRememberProcessor":
        """Build the processor that belongs to a model assembled from two backbones.

        Args:
            vision: Folder, hub id or `embedded/NAME` of the vision encoder (its image processor is loaded).
            text: The same of the language model (its tokenizer is loaded).
            config: The assembled model's config.

        Raises:
            ValueError: The tokenizer is not the one the model was assembled with.
        """
        vision, text = model_path(vision), model_path(text)
        processor = cls(load_image_processor(vision), load_tokenizer(text), **config.processor_options)
        if processor.image_token_id != config.image_token_id:
            raise ValueError(
                f"the tokenizer of {text} places {IMAGE_TOKEN} at {processor.image_token_id}, the model expects "
                f"{config.image_token_id}; use the language model the model was assembled from"
            )
        return processor

    def at(self, tokens_per_image: int | None) -> "VisionRememberProcessor":
        """The same processor with another number of vision tokens per image, which its batches tell the model; None: itself.

        Raises:
            ValueError: The model reads any resolution, where an image has as many tokens as its size asks for.
        """
        if tokens_per_image is None:
            return self
        if self.tiling.is_anyres:
            raise ValueError(
                f"tokens_per_image is {tokens_per_image}, and an any-resolution model (resolution: anyres) gives an image as many tokens "
                "as its size asks for; leave it out"
            )
        other = copy.copy(self)
        other.template = copy.copy(self.template)
        other.tiling = dataclasses.replace(self.tiling, token_grid=Grid(1, tokens_per_image))
        other.tokens_per_image = other.num_image_tokens = other.template.num_image_tokens = tokens_per_image
        return other

    def encode(
        self,
        messages: Messages,
        images: Sequence[Image.Image] | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
    ) -> Encoding:
        """Encode one conversation.

        Args:
            messages: Hugging Face chat format.
            images: Images of the empty image parts in reading order; None when the parts carry their own.
            add_generation_prompt: End with the opening of an assistant turn.
            continue_final_message: Leave the last turn open.

        Raises:
            ValueError: Slots and images disagree (with both counts), or a message is malformed.
        """
        chat = self.template.encode(
            frames_as_images(messages),
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        images = all_rgb(self.images_of(messages, images))
        sizes = [size_of(image) for image in images]
        chat = self.with_images(chat, sizes)
        sizes = sizes if self.tiling.is_anyres else []
        return Encoding(
            input_ids=chat.input_ids, target=chat.target, pixel_values=self._canvases.pixels(images), image_sizes=sizes
        )

    def with_images(self, chat: TokenizedChat, sizes: Sequence[Size]) -> TokenizedChat:
        """The conversation with its image slots as long as these images ask for.

        Args:
            chat: Of this processor's template.
            sizes: Height and width in pixels of each image, in reading order.

        Raises:
            ValueError: Slots and images disagree (with both counts).
        """
        if chat.num_images != len(sizes):
            raise ValueError(f"{chat.num_images} image slots in the messages, {len(sizes)} images given")
        if not self.tiling.is_anyres:
            return chat
        return chat.with_lengths([self.tiling.layout(size).num_tokens for size in sizes], self.image_token_id)

    def images_of(self, messages: Messages, images: Sequence[Image.Image] | None = None) -> Sequence[Image.Image]:
        """The images of a conversation in reading order: those given beside the messages, or those that the parts carry."""
        carried = carried_images(messages)
        images = [] if images is None else list(images)
        if images and carried:
            raise ValueError(
                f"{len(carried)} images inside the messages and {len(images)} beside them; pass one or the other"
            )
        return images or carried

    def canvases(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """RGB images as the encoder sees them, each whole on one canvas (cut, where the model's resolution says `crop`)."""
        return [self._canvases.base(image) for image in all_rgb(images)]

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixels of n images, float[n, 3, height, width]; with views float[n, 1 + X, 3, height, width], the page before its X crops."""
        return self._canvases.pixels(all_rgb(images))

    def pad(self, encodings: Sequence[Encoding], *, side: Literal["left", "right"]) -> BatchFeature:
        """Pad conversations into a batch.

        Args:
            encodings: B conversations.
            side: "left" for generation, "right" for training.

        Returns:
            `input_ids` long[B, T], `attention_mask` long[B, T], `labels` long[B, T] (-100 where nothing is to be said), and
            `pixel_values` of all N images in order, as `pixels` makes them, absent when there is none; at any resolution also
            `image_sizes` long[N, 2]; `at` adds its number.
        """
        told = {} if self.tokens_per_image is None else {"tokens_per_image": self.tokens_per_image}
        return BatchFeature(pad(encodings, pad_token_id=self.template.pad_id, side=side) | told)
