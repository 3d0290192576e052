"""What a recording comes to: one model measured, in plain numbers that figures, tables and sentences share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vision_remember.analysis.explain import looked
from vision_remember.analysis.probes import (
    ProbeScore,
    chance,
    characters_under,
    features_of_cells,
    probe,
    split_pages,
)
from vision_remember.analysis.recording import AS_IT_IS, MUTED, Reading, Recording, record
from vision_remember.analysis.sheets import Sheet
from vision_remember.analysis.similarity import cka, evenly_chosen, linear_kernel, mean_and_detail
from vision_remember.data.synthetic.canvas import SIDE
from vision_remember.evaluation.bootstrap import Floats, Interval, interval, resampled_means
from vision_remember.geometry import Grid, Windows, windows
from vision_remember.model.engine import Engine

MEAN, DETAIL = "mean", "detail"
Curve = list[Interval]


@dataclass(frozen=True, kw_only=True)
class Characters:
    """What linear probes read, as fractions of the held-out characters, with 95 % intervals over pages.

    Attributes:
        encoder: From the encoder's features of each cell, by maps that were fitted on as many characters as those of the tokens.
        chance: The most frequent character, always.
        read: By reading, one value per number of layers passed.
        muting: `AS_IT_IS` minus `MUTED` on the same pages, at each number of layers passed; None without a muted reading.
        resampled: Of `read[AS_IT_IS]`, with the same draws of pages for every model that was shown them.
        lost: `encoder` minus what is read of the vision tokens before the first layer.
        num_fitted, num_held_out: Pages.
        num_characters: Characters scored.
    """

    encoder: Interval
    chance: Interval
    read: dict[str, Curve]
    muting: Curve | None
    resampled: list[Floats]
    lost: Interval
    num_fitted: int
    num_held_out: int
    num_characters: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One model.

    Attributes:
        label: What figures call it.
        refusion: Name of its re-fusion method.
        insertions: Decoder layers after which it acts.
        is_guided: Whether the question takes part in where the tokens look.
        patch_grid, token_grid: Of encoder and projector.
        num_layers: Of the decoder.
        level: The encoder's hidden state that tokens are compared with.
        share, density: By reading, one value per decoder layer; see `attention_density`.
        similarity: By reading and part (`MEAN`, `DETAIL`), one CKA per number of layers passed; None where it is undefined.
        characters: The probes; None where no page tells what stands on it.
        looks: By decoder layer, attention `float[B, V, W]` over the window of every token, mean over heads.
        margin: Patches by which those windows exceed the tokens' cells.
        ink: By decoder layer, attention over even attention on patches with writing and on blank ones; empty for a user's images.
    """

    label: str
    refusion: str
    insertions: tuple[int, ...]
    is_guided: bool
    patch_grid: Grid
    token_grid: Grid
    num_layers: int
    level: int
    share: dict[str, Curve]
    density: dict[str, Curve]
    similarity: dict[str, dict[str, list[float | None]]]
    characters: Characters | None
    looks: dict[int, Tensor]
    margin: int
    ink: dict[int, tuple[float, float]]

    @property
    def compression(self) -> float:
        """Patches per vision token."""
        return self.patch_grid.num_cells / self.token_grid.num_cells


def measure(
    engine: Engine,
    sheets: Sequence[Sheet],
    label: str,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Measurement:
    """Records one model on the sheets and measures what it recorded.

    Args:
        engine: The model.
        sheets: All of them rendered, or none.
        label: What figures call the model.
        seed: Of the split into pages to fit probes on and pages to score them on.
        progress: As in `record`.

    Raises:
        ValueError: Rendered pages, which are square, do not fill the canvas of this model's encoder.
    """
    model, config = engine.model.model, engine.model.config
    recording = record(engine, sheets, progress=progress)
    fine, coarse = config.patch_grid, model.token_grid
    looks, margin = recording.readings[AS_IT_IS].looks, config.refusion.get("margin", 0)
    cells = None
    if all(sheet.cells is not None for sheet in sheets):
        height, width = config.image_size
        if height != width:
            raise ValueError(
                f"rendered pages are square, the encoder of {label} sees {height}x{width} pixels; analyse images of your own instead"
            )
        cells = torch.stack([sheet.cells for sheet in sheets if sheet.cells is not None])
    ink = {}
    if cells is not None:
        own = windows(fine, coarse, margin)
        ink = {layer: _ink(attention, cells, own, fine) for layer, attention in looks.items()}
    return Measurement(
        label=label,
        refusion=config.refusion["type"],
        insertions=tuple(sorted(model.refusion.layers)),
        is_guided=model.refusion.needs_guidance,
        patch_grid=fine,
        token_grid=coarse,
        num_layers=config.text_config.num_hidden_layers,
        level=model.encoder_level_indices[-1],
        share={name: _over_sheets(reading.share) for name, reading in recording.readings.items()},
        density={name: _over_sheets(reading.density) for name, reading in recording.readings.items()},
        similarity=_similarity(recording, fine, coarse),
        characters=None if cells is None else _characters(recording, cells, fine, coarse, seed),
        looks=looks,
        margin=margin,
        ink=ink,
    )


def ahead(one: Measurement, other: Measurement) -> Curve | None:
    """What probes read of one model minus what they read of another on the same pages, at each number of layers both passed.

    None where one of them was not probed, or their tokens do not cover the same characters.
    """
    found, base = one.characters, other.characters
    if found is None or base is None or found.num_characters != base.num_characters:
        return None
    curves = zip(found.read[AS_IT_IS], base.read[AS_IT_IS], found.resampled, base.resampled, strict=False)
    return [interval(mine.value - its.value, draws - others) for mine, its, draws, others in curves]


def without_refusion(one: Measurement, measurements: Sequence[Measurement]) -> Measurement | None:
    """The first of the models that has as many tokens as this re-fused one and no re-fusion."""
    plain = (other for other in measurements if not other.insertions and other.token_grid == one.token_grid)
    return next(plain, None) if one.insertions else None


def _over_sheets(values: Tensor) -> Curve:
    """The mean over sheets of every column of `float[B, S]`, with its interval over sheets."""
    sums = values.double().numpy()
    resampled = resampled_means(sums, torch.ones(len(sums)).double().numpy(), key="sheets")
    return [interval(float(sums[:, i].mean()), resampled[:, i]) for i in range(sums.shape[1])]


def _similarity(recording: Recording, fine: Grid, coarse: Grid) -> dict[str, dict[str, list[float | None]]]:
    mean, detail = (part.flatten(0, 1) for part in mean_and_detail(recording.features.float(), fine, coarse))
    chosen = evenly_chosen(len(mean))
    parts = {MEAN: linear_kernel(mean[chosen]), DETAIL: linear_kernel(detail[chosen])}

    def curves(reading: Reading) -> dict[str, list[float | None]]:
        kernels = [linear_kernel(state.flatten(0, 1)[chosen]) for state in reading.states]
        return {name: [cka(kernel, part) for kernel in kernels] for name, part in parts.items()}

    return {name: curves(reading) for name, reading in recording.readings.items()}


def _characters(recording: Recording, cells: Tensor, fine: Grid, coarse: Grid, seed: int) -> Characters:
    split, under = split_pages(len(cells), seed), characters_under(cells, coarse)
    of_cells, cell_grid = features_of_cells(recording.features, fine)
    read = {
        name: [probe(state, under, split) for state in reading.states] for name, reading in recording.readings.items()
    }
    # A token has a map for every cell under it, the encoder one for all cells: with as many pages it would learn from more characters.
    share = under.shape[2]
    fewer = replace(split, fitting=split.fitting[::share], choosing=split.choosing[::share])
    encoder = probe(of_cells, characters_under(cells, cell_grid), fewer)
    guess = chance(under, split)
    tokens = [score for scores in read.values() for score in scores]
    # One draw of pages for all: they are scored on the same ones.
    resampled = {id(score): _resampled(score) for score in (encoder, guess, *tokens)}

    def value(score: ProbeScore) -> Interval:
        return interval(score.accuracy, resampled[id(score)])

    def difference(one: ProbeScore, other: ProbeScore) -> Interval:
        return interval(one.accuracy - other.accuracy, resampled[id(one)] - resampled[id(other)])

    muting = None
    if MUTED in read:
        muting = [difference(one, other) for one, other in zip(read[AS_IT_IS], read[MUTED], strict=True)]
    return Characters(
        encoder=value(encoder),
        chance=value(guess),
        read={name: [value(score) for score in scores] for name, scores in read.items()},
        muting=muting,
        resampled=[resampled[id(score)] for score in read[AS_IT_IS]],
        lost=difference(encoder, read[AS_IT_IS][0]),
        num_fitted=len(cells) - len(split.held_out),
        num_held_out=len(split.held_out),
        num_characters=int(encoder.written.sum()),
    )


def _resampled(score: ProbeScore) -> Floats:
    return resampled_means(score.right[:, None].numpy(), score.written.numpy(), key="held-out pages")[:, 0]


def _ink(attention: Tensor, cells: Tensor, own: Windows, fine: Grid) -> tuple[float, float]:
    """Means of `explain.looked` over the patches whose centre lies in a cell that carries something, and over the others."""
    maps = torch.stack([looked(page[:, None], own, fine) for page in attention])
    row = (2 * torch.arange(fine.height) + 1) * SIDE // (2 * fine.height)
    column = (2 * torch.arange(fine.width) + 1) * SIDE // (2 * fine.width)
    is_drawn = cells[:, row[:, None], column] > 0
    return float(maps[is_drawn].mean()), float(maps[~is_drawn].mean())
