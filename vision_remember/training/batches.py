"""From keys of samples to tensors, through the processor that serves, each sample prepared once.

A step of a tiny model takes 0.15 s, so nothing may be done twice: conversations are encoded once and kept, and with a feature cache the
batch carries `encoder_levels` in place of pixels. Loader workers prepare anew, each for itself, and keep nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_remember.data.collator import Collator
from vision_remember.data.quarantine import Quarantine
from vision_remember.data.schema import DataError, Sample
from vision_remember.model.processing import Encoding, VisionRememberProcessor
from vision_remember.tiling import Size
from vision_remember.training import distributed
from vision_remember.training.features import CachedFeatures
from vision_remember.training.order import Key, SampleOrder
from vision_remember.training.recipe import Recipe

KEPT_BYTES = 2**30  # of pixels of prepared samples


class Batches:
    """Makes the batches of a run.

    Args:
        order: which sample comes when.
        processor: the model's own.
        recipe: longest sequence, batch sizes, policy for bad samples.
        folder: of the run; the quarantine's file lies there.
    """

    def __init__(self, order: SampleOrder, processor: VisionRememberProcessor, recipe: Recipe, folder: Path):
        self.order, self.processor, self.seed = order, processor, recipe.seed
        self.rates, self._rates_per_step = recipe.training.tokens_per_image, recipe.training.rates_per_step
        self.samples_per_step = recipe.training.batch_size * recipe.training.accumulation
        self.quarantine = None
        if recipe.data.on_bad_sample == "quarantine":
            self.quarantine = Quarantine(folder / "quarantine.jsonl", num_samples=order.epoch_length)
        self.features: CachedFeatures | None = None
        self._max_length = recipe.data.max_length
        self._micro_batch, _ = distributed.share(recipe.training, distributed.size())
        self._collators = self._at_all_rates(lambda processor: processor)
        self._prepared: dict[tuple[Key, int | None], Encoding | None] = {}
        self._room = KEPT_BYTES if recipe.training.num_workers == 0 else 0

    def use(self, features: CachedFeatures) -> None:
        """Carries these features from now on, in place of pixels."""
        self.features = features
        self._collators = self._at_all_rates(TextOnly)
        self._prepared.clear()

    def keys(self) -> Iterable[Key]:
        """Every sample this process will ask for, once, in the order of first use."""
        return dict.fromkeys(self.order[place] for place in range(len(self.order)) if self._is_own(place))

    def read(self, key: Key) -> Sample:
        """The sample; without its pixels once features are in use."""
        return self.features.sample(key) if self.features else self.order.read(key)

    @property
    def num_places(self) -> int:
        """Places of the run: its samples, each as often as a step takes it."""
        return len(self.order) * self._rates_per_step

    def rates_of(self, step: int) -> Sequence[int | None]:
        """The numbers of vision tokens of an optimizer step, counted from 0: all, or one that is decided by the step and the seed alone."""
        if self._rates_per_step > 1:
            return self.rates
        return [random.Random(f"tokens/{self.seed}/{step}").choice(self.rates) if self.rates else None]

    def at(self, places: Sequence[int]) -> Mapping[str, Tensor]:
        """The batch of these places of the run, which are one micro-batch: the same samples follow each other at every rate of a step."""
        number = places[0] // self._micro_batch
        first = number // self._rates_per_step * self._micro_batch
        rates = self.rates_of(first // self.samples_per_step)
        keys = [self.order[first + place % self._micro_batch] for place in places]
        return self.collate(keys, rates[number % self._rates_per_step])

    def collate(self, keys: Sequence[Key], tokens_per_image: int | None = None) -> Mapping[str, Tensor]:
        """The batch of these samples, padded on the right; samples in quarantine are missing from it."""
        collator = self._collators[tokens_per_image]
        prepared = [(key, encoding) for key in keys if (encoding := self._encoding(key, tokens_per_image)) is not None]
        if not prepared:
            return collator([])  # one row without a target, whose loss is 0
        batch = dict(collator.processor.pad([encoding for _, encoding in prepared], side="right"))
        if self.features and (levels := [images for key, _ in prepared if len(images := self.features.of(key))]):
            batch["encoder_levels"] = torch.cat(levels)
        return batch

    def set_aside(self, error: DataError) -> None:
        """Applies the recipe's policy to a bad sample: raises, or writes it to the quarantine."""
        if self.quarantine is None:
            raise error
        self.quarantine.add(error, error.problems[0].where if error.problems else str(error))

    def ids(self, step: int) -> list[str]:
        """Ids of this process's samples of an optimizer step, counted from 0."""
        places = range(step * self.samples_per_step, (step + 1) * self.samples_per_step)
        keys, (rate, *_) = [self.order[place] for place in places if self._is_own(place)], self.rates_of(step)
        return [self.read(key).id for key in keys if self._encoding(key, rate) is not None]

    def _is_own(self, place: int) -> bool:
        """Whether this process takes the sample at a place of the order, at any rate: micro-batches go round, as accelerate deals them."""
        first = place // self._micro_batch * self._rates_per_step
        takers = [number % distributed.size() for number in range(first, first + self._rates_per_step)]
        return distributed.rank() in takers

    def _at_all_rates(self, reader: Callable[[VisionRememberProcessor], Any]) -> dict[int | None, Collator]:
        rates: list[int | None] = [None, *self.rates]
        return {rate: Collator(reader(self.processor.at(rate)), max_length=self._max_length) for rate in rates}

    def _encoding(self, key: Key, rate: int | None) -> Encoding | None:
        if (key, rate) in self._prepared:
            return self._prepared[key, rate]
        encoding = None
        try:
            if self.features is None:
                encoding = self._collators[rate].encode(self.read(key))
            elif key in self.features:
                encoding = self._collators[rate].encode(self.read(key), self.features.sizes(key))
        except DataError as error:
            self.set_aside(error)
        size = encoding.pixel_values.nbytes if encoding else 0
        if self._room > size:
            self._room -= size
            self._prepared[key, rate] = encoding
        return encoding


class TextOnly:
    """The processor without pixels: same ids, same counts; of an image it is told the size."""

    def __init__(self, processor: VisionRememberProcessor):
        self.image_token_id, self.pad = processor.image_token_id, processor.pad
        self._processor, self._no_pixels = processor, processor.pixels([])

    def encode(self, messages: Sequence[dict], images: Sequence[Size]) -> Encoding:
        """As `VisionRememberProcessor.encode`, with no `pixel_values`; `images` are height and width of each in pixels."""
        chat = self._processor.with_images(self._processor.template.encode(messages), images)
        sizes = images if self._processor.tiling.is_anyres else ()
        return Encoding(input_ids=chat.input_ids, target=chat.target, pixel_values=self._no_pixels, image_sizes=sizes)
