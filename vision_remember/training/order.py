"""Which sample comes when: the mixture's epochs one after another, decided by the data and the seed alone.

Epochs are joined without a seam, so a batch may span two of them; every sample still comes exactly once per epoch. The order names
samples without reading them: a resumed run starts in its middle and a comparison gives every row the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch.utils.data import Dataset

from vision_remember.data.mixture import Mixture, Part
from vision_remember.data.schema import Sample, SampleSequence
from vision_remember.data.sources import load_samples
from vision_remember.data.synthetic import SyntheticSamples
from vision_remember.training.recipe import Recipe, SourceSection

Key = tuple[str, int]  # fingerprint of a data set, number of the sample in it


class SampleOrder(Dataset):
    """The samples of a whole run by position, as keys; `read` makes the sample of a key.

    Args:
        recipe: names sources, weights and the seed.
        length: samples the run takes.
    """

    def __init__(self, recipe: Recipe, length: int):
        self.length = length
        self._sources: dict[str, SampleSequence] = {}
        parts = []
        for source in recipe.data.sources:
            samples = open_source(source)
            fingerprint = samples.fingerprint
            self._sources[fingerprint] = samples
            parts.append(Part(samples=_Keys(fingerprint, len(samples)), weight=source.weight, limit=source.limit))
        self._first = Mixture(parts, seed=recipe.seed)
        self._epoch = lru_cache(maxsize=2)(self._first.at_epoch)

    @property
    def fingerprint(self) -> str:
        """Changes with the data, the mixture or the seed."""
        return self._first.fingerprint

    @property
    def epoch_length(self) -> int:
        """Samples of one epoch."""
        return len(self._first)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Key:
        epoch, place = divmod(position, self.epoch_length)
        return self._epoch(epoch)[place]

    def read(self, key: Key) -> Sample:
        """The sample; raises `DataError` where its record is bad."""
        fingerprint, number = key
        return self._sources[fingerprint][number]


def open_source(source: SourceSection) -> SampleSequence:
    """The samples one source of a recipe names."""
    if source.synthetic is None:
        return load_samples(str(source.path), images=source.images)
    pages = source.synthetic
    return SyntheticSamples(
        pages.count,
        split=pages.split,
        seed=pages.seed,
        families=pages.families,
        questions=pages.questions,
        transcript=pages.transcript,
        as_text=pages.as_text,
    )


class _Keys(Sequence[Any]):
    """Stands for a data set in a mixture and answers with keys instead of samples."""

    def __init__(self, fingerprint: str, length: int):
        self.fingerprint, self.length = fingerprint, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        return self.fingerprint, index
