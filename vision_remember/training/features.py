"""The levels of a frozen encoder, computed once per image.

A frozen encoder sees the same page at every epoch and, in a comparison, in every run. The cache keeps what it answered, so that a step
costs the language model alone. It also keeps the words of each sample, so that a later run over the same data draws and decodes nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor

from vision_remember.data.schema import DataError, Sample
from vision_remember.model import VisionRememberForConditionalGeneration, VisionRememberProcessor
from vision_remember.model.pixels import size_of
from vision_remember.tiling import Size
from vision_remember.training.order import Key

BATCH = 32  # images encoded at once
SLAB = 2**24  # numbers that are allocated at once, 64 MiB: from 32 MiB on an allocation is a mapping of its own
NO_PIXELS = Image.new("RGB", (32, 32))  # stands where an image was


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """A sample without its pixels, and what is known of its images: the hash of their content, height and width in pixels."""

    sample: Sample
    images: tuple[str, ...]
    sizes: tuple[Size, ...]


class FeatureCache:
    """Encoder levels by image content, and samples without their pixels; shared by the runs of one process.

    Held in memory: 4 * L * P * C bytes an image, 295 kB for four levels of a 12 x 12 grid, 128 wide; as much again for every crop that
    re-fusion reads beside the page, and for every tile of any resolution.
    """

    def __init__(self) -> None:
        self._samples: dict[Key, Kept] = {}
        self._levels: dict[tuple[str, str], dict[int, Tensor]] = {}
        self._slab = torch.empty(0)

    def fill(
        self,
        model: VisionRememberForConditionalGeneration,
        processor: VisionRememberProcessor,
        keys: Iterable[Key],
        read: Callable[[Key], Sample],
        *,
        on_bad_sample: Callable[[DataError], None],
        advance: Callable[[int], object] = lambda count: None,
    ) -> CachedFeatures:
        """Computes what is missing.

        Args:
            model: its encoder is read, in its present weights and without gradient.
            processor: makes the pixels.
            keys: the samples that will be asked for.
            read: makes the sample of a key.
            on_bad_sample: told of samples that cannot be used; they are left out unless it raises.
            advance: told how many samples were done since the last call.

        Returns:
            What one run reads.
        """
        view = CachedFeatures(
            self._samples,
            self._levels,
            encoder=_fingerprint(model, processor),
            levels=tuple(model.encoder_level_indices),
            has_tiles=model.config.tiling.is_anyres,
        )
        waiting: dict[str, Image.Image] = {}
        for key in keys:
            try:
                if not view.is_complete(key):
                    waiting.update(self._missing(view, key, read(key)))
            except DataError as error:
                on_bad_sample(error)
            if len(waiting) >= BATCH:
                self._encode(model, processor, view, waiting)
            advance(1)
        self._encode(model, processor, view, waiting)
        return view

    def _missing(self, view: CachedFeatures, key: Key, sample: Sample) -> dict[str, Image.Image]:
        images = sample.load_images()
        names = tuple(map(_content, images))
        without = dataclasses.replace(sample, images=(NO_PIXELS,) * len(names))
        self._samples[key] = Kept(sample=without, images=names, sizes=tuple(map(size_of, images)))
        return {name: image for name, image in zip(names, images, strict=True) if not view.has_levels(name)}

    def _encode(self, model, processor, view: CachedFeatures, waiting: dict[str, Image.Image]) -> None:
        if not waiting:
            return
        sizes = [size_of(image) for image in waiting.values()]
        pixels = processor.pixels(list(waiting.values())).to(model.device)
        with torch.no_grad():
            encoded = model.encode(pixels, torch.tensor(sizes) if view.has_tiles else None).float().cpu()
        counts = [processor.tiling.layout(size).num_views for size in sizes]
        each = [x.transpose(0, 1) for x in encoded.split(counts)] if view.has_tiles else encoded  # [L, tiles, P, C]
        for image, features in zip(waiting, each, strict=True):
            kept = self._levels.setdefault((view.encoder, image), {})
            kept.update((level, self._kept(features[i])) for i, level in enumerate(view.levels) if level not in kept)
        waiting.clear()

    def _kept(self, features: Tensor) -> Tensor:
        """A copy that lies in a slab: small copies, strewn over what an encoder allocates and frees, keep all of it from the system."""
        if self._slab.shape[1:] != features.shape or not len(self._slab):
            self._slab = torch.empty(max(SLAB // features.numel(), 1), *features.shape)
        copy, self._slab = self._slab[0].copy_(features), self._slab[1:]
        return copy


@dataclasses.dataclass(frozen=True)
class CachedFeatures:
    """What one run reads of a cache: its samples, and the levels its model asks for."""

    samples: dict[Key, Kept]
    features: dict[tuple[str, str], dict[int, Tensor]]
    encoder: str
    levels: Sequence[int]
    has_tiles: bool

    def __contains__(self, key: Key) -> bool:
        return key in self.samples

    def is_complete(self, key: Key) -> bool:
        """Whether the sample and all levels of all its images are here."""
        return key in self.samples and all(self.has_levels(image) for image in self.samples[key].images)

    def has_levels(self, image: str) -> bool:
        """Whether every level of this image is here."""
        return self.features.get((self.encoder, image), {}).keys() >= set(self.levels)

    def sample(self, key: Key) -> Sample:
        """The sample without its pixels."""
        return self.samples[key].sample

    def sizes(self, key: Key) -> tuple[Size, ...]:
        """Height and width in pixels of each of its images."""
        return self.samples[key].sizes

    def of(self, key: Key) -> Tensor:
        """The levels of its n images as `encode` gives them; empty for text alone.

        Returns:
            float[n, L, P, C]; float[n, L, 1 + X, P, C] with crops; at any resolution float[views of all images, L, P, C].
        """
        images = [self.features[self.encoder, image] for image in self.samples[key].images]
        if not images:
            return torch.empty(0)
        join, dim = (torch.cat, 1) if self.has_tiles else (torch.stack, 0)
        return join([torch.stack([image[level] for level in self.levels], dim=dim) for image in images])


def _content(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


def _fingerprint(model: VisionRememberForConditionalGeneration, processor: VisionRememberProcessor) -> str:
    digest = hashlib.sha256(processor.image_processor.to_json_string().encode())
    digest.update(f"{processor.image_size} {processor.views} {processor.resolution}".encode())
    for name, parameter in model.parts()["encoder"]:
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
