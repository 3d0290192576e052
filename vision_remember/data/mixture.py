"""Several data sets as one, in an order that the seed alone decides.

A weight says how often each sample appears in an epoch: 1 once, 2 twice, 0.5 every second one. A limit takes at most that many samples,
chosen by the seed, before the weight applies. At weight 1 every sample appears exactly once per epoch. Nothing is loaded or copied; the
same seed and epoch give the same order on every machine and for any number of workers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vision_remember.data.schema import DataError, Sample, SampleSequence


@dataclass(frozen=True, kw_only=True)
class Part:
    """One data set of a mixture.

    Attributes:
        samples: Any lazy sequence of samples.
        weight: Appearances of each sample per epoch, above 0.
        limit: Most samples taken, or None for all.
    """

    samples: SampleSequence
    weight: float = 1.0
    limit: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise DataError(f"weight {self.weight}: write a number above 0")
        if self.limit is not None and self.limit < 1:
            raise DataError(f"limit {self.limit}: write a number of samples, at least 1")


class Mixture(Sequence[Sample]):
    """One epoch of a mixture: a lazy sequence in shuffled order.

    Args:
        parts: The data sets.
        seed: Decides which samples a limit or a fractional weight keeps, and the order.
        epoch: Counted from 0; changes the order and the fractional choice, never what a limit keeps.

    Raises:
        DataError: No sample is left.
    """

    def __init__(self, parts: Sequence[Part], *, seed: int, epoch: int = 0):
        self.parts, self.seed, self.epoch = tuple(parts), seed, epoch
        members = [_members(part, seed, epoch, number) for number, part in enumerate(self.parts)]
        owners = [torch.full_like(member, number) for number, member in enumerate(members)]
        total = sum(len(member) for member in members)
        if not total:
            raise DataError("the mixture has no samples: raise a weight or a limit, or name a source that has some")
        order = torch.randperm(total, generator=_generator(seed, epoch, -1))
        self._place = torch.stack([torch.cat(owners), torch.cat(members)], dim=1)[order]

    @property
    def fingerprint(self) -> str:
        """Changes with the data, the weights, the limits or the seed, not with the epoch."""
        parts = [f"{part.samples.fingerprint} {len(part.samples)} {part.weight} {part.limit}" for part in self.parts]
        return hashlib.sha256("\n".join([str(self.seed), *parts]).encode()).hexdigest()

    def at_epoch(self, epoch: int) -> Mixture:
        """The same mixture in the order of another epoch."""
        return Mixture(self.parts, seed=self.seed, epoch=epoch)

    def __len__(self) -> int:
        return len(self._place)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        part, member = self._place[index].tolist()
        return self.parts[part].samples[member]


def _members(part: Part, seed: int, epoch: int, number: int) -> Tensor:
    """Numbers of the samples of one part that appear in an epoch, with repetition, long[n]."""
    kept = torch.arange(len(part.samples))
    if part.limit is not None and part.limit < len(kept):
        kept = torch.randperm(len(kept), generator=_generator(seed, -1, number))[: part.limit]
    whole = math.floor(part.weight)
    rest = round((part.weight - whole) * len(kept))
    chosen = torch.randperm(len(kept), generator=_generator(seed, epoch, number))[:rest]
    return torch.cat([kept.repeat(whole), kept[chosen]])


def _generator(*key: int) -> torch.Generator:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
