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
from vision_remember.training.order import Key

BATCH = 32  # images encoded at once
NO_PIXELS = Image.new("RGB", (32, 32))  # stands where an image was


class FeatureCache:
    """Encoder levels by image content, and samples without their pixels; shared by the runs of one process.

    Held in memory: 4 * L * P * C bytes an image, 295 kB for four levels of a 12 x 12 grid, 128 wide; as much again for every crop that
    re-fusion reads beside the page.
    """

    def __init__(self) -> None:
        self._samples: dict[Key, tuple[Sample, tuple[str, ...]]] = {}
        self._levels: dict[tuple[str, str], dict[int, Tensor]] = {}

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

        Raises:
            ValueError: The model reads any resolution: the cache keeps one canvas of every image, and no image sizes.
        """
        if model.config.tiling.is_anyres:
            raise ValueError(
                "features of an any-resolution model (resolution: anyres) are not cached: its images have different numbers of tiles; set "
                "training.cache_features: false"
            )
        view = CachedFeatures(
            self._samples, self._levels, _fingerprint(model, processor), tuple(model.encoder_level_indices)
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
        self._samples[key] = (dataclasses.replace(sample, images=(NO_PIXELS,) * len(names)), names)
        return {name: image for name, image in zip(names, images, strict=True) if not view.has_levels(name)}

    def _encode(self, model, processor, view: CachedFeatures, waiting: dict[str, Image.Image]) -> None:
        if not waiting:
            return
        pixels = processor.pixels(list(waiting.values())).to(model.device)
        with torch.no_grad():
            encoded = model.encode(pixels).float().cpu()
        for image, features in zip(waiting, encoded, strict=True):
            kept = self._levels.setdefault((view.encoder, image), {})
            kept.update((level, features[i].clone()) for i, level in enumerate(view.levels) if level not in kept)
        waiting.clear()


@dataclasses.dataclass(frozen=True)
class CachedFeatures:
    """What one run reads of a cache: its samples, and the levels its model asks for."""

    samples: dict[Key, tuple[Sample, tuple[str, ...]]]
    features: dict[tuple[str, str], dict[int, Tensor]]
    encoder: str
    levels: Sequence[int]

    def __contains__(self, key: Key) -> bool:
        return key in self.samples

    def is_complete(self, key: Key) -> bool:
        """Whether the sample and all levels of all its images are here."""
        return key in self.samples and all(self.has_levels(image) for image in self.samples[key][1])

    def has_levels(self, image: str) -> bool:
        """Whether every level of this image is here."""
        return self.features.get((self.encoder, image), {}).keys() >= set(self.levels)

    def sample(self, key: Key) -> Sample:
        """The sample without its pixels."""
        return self.samples[key][0]

    def of(self, key: Key) -> Tensor:
        """The levels of its n images as `encode` gives them, float[n, L, P, C] or float[n, L, 1 + X, P, C]; empty for text alone."""
        images = [self.features[self.encoder, image] for image in self.samples[key][1]]
        if not images:
            return torch.empty(0)
        return torch.stack([torch.stack([image[level] for level in self.levels]) for image in images])


def _content(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


def _fingerprint(model: VisionRememberForConditionalGeneration, processor: VisionRememberProcessor) -> str:
    digest = hashlib.sha256(processor.image_processor.to_json_string().encode())
    digest.update(f"{processor.image_size} {processor.views} {processor.resolution}".encode())
    for name, parameter in model.parts()["encoder"]:
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
