"""The words of an analysis: what each measure means, said so that it can be read without the code, and the numbers as sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from vision_remember.analysis.measurement import DETAIL, MEAN, Measurement, ahead, without_refusion
from vision_remember.analysis.recording import AS_IT_IS, MUTED
from vision_remember.evaluation.bootstrap import Interval

DEFINITIONS = {
    "probe": (
        "A vision token stands for a region of the page. From its state, after every decoder layer, a linear map is asked which "
        "character stands in each cell of that region; it is fitted on some pages and scored on others. What such a probe reads is in "
        "the token in a form that the next layer can use. What it misses may still be there in a form that is not linear."
    ),
    "density": (
        "The words after the image look back at the prompt, and at the vision tokens in it. The share is what part of that attention "
        "falls on vision tokens. With fewer tokens an equal share is a closer look, so the density divides the share by what an "
        "even look over all visible positions would give: 1 is indifference."
    ),
    "similarity": (
        "The features of the patches that a token stands for are split in two: their mean, which average pooling keeps, and the "
        "detail, what is left of every patch without that mean, which pooling drops. A token that has only what the projector gave it "
        "resembles the first; resembling the second takes another look."
    ),
    "ridge": (
        "ridge regression in closed form, one map a cell of the region, its strength chosen on a part of the first. The encoder's features "
        "of a cell are read by one map, fitted on as many characters as a map of the tokens"
    ),
    "muted": (
        "A model that looks again is read twice: as it is, and muted, which is the same weights called without the memory, so that no "
        "insertion acts. Its layers have learnt to rely on what they now miss, so muting costs more than looking again brings: what it "
        "brings is the distance to a model with as many tokens that was trained without, where the command names one."
    ),
    "intervals": "2.5 and 97.5 percentiles of 10,000 resamples of pages; they do not cover the noise of training",
    "cka": "linear centred kernel alignment, unbiased: 1 is agreement up to rotation and scale, 0 is what unrelated features score",
    "ours": (
        "the definitions of density, probes and parts of a window; arXiv 2506.03928 has a figure of attention density, whose formula we "
        "could not read"
    ),
}
CAPTIONS = {
    "characters": (
        "What a linear probe reads.",
        "Left: the vision tokens as the projector made them (0) and after each decoder layer; dashed with re-fusion muted; dotted at the "
        "top the encoder's own features, at the bottom chance. Triangles: layers whose output includes re-fusion. Right: points of a model "
        "minus the one with as many tokens and no re-fusion; dashed, minus itself muted. Bands: 95 % intervals.",
    ),
    "attention": (
        "Attention of the text to the vision tokens.",
        "Mean over pages, heads and the words after the image. Dashed: with re-fusion muted. Bands: 95 % intervals.",
    ),
    "similarity": (
        "What the vision tokens resemble.",
        "Similarity to the encoder features under each token, after every decoder layer. Dashed: with re-fusion muted. A single patch "
        "under a token is its own mean and has no detail.",
    ),
    "page": (
        "",
        "Left: the page and the regions of its tokens. Right: attention of the tokens within their regions; yellow to red is more than "
        "an even look.",
    ),
}


def subject(measurements: Sequence[Measurement]) -> Measurement:
    """Return the model a report opens with: the first that looks again, or else the first."""
    return next((one for one in measurements if one.insertions), measurements[0])


def opening(measurements: Sequence[Measurement], about: Mapping[str, Any]) -> str:
    """Say in two sentences what was found in the model the report opens with."""
    one = subject(measurements)
    tokens, patches, found = one.token_grid.num_cells, one.patch_grid.num_cells, one.characters
    if found is None:
        return f"{one.label} reads {about['sheets']} images, {tokens} vision tokens each for {patches} patches. {density_sentence(one)}"
    read = found.read[AS_IT_IS]
    words = (
        f"A linear map reads {_percent(found.encoder)} of a page's characters off the encoder's features, {_percent(read[0])} off the "
        f"{tokens} vision tokens that {one.label} makes of {patches} patches, and {_percent(read[-1])} after {end(one)}"
    ).rstrip(",")
    plain = without_refusion(one, measurements)
    return f"{words}." if plain is None else f"{words}. {_ahead_sentence(one, plain)}"


def reading_sentence(one: Measurement, measurements: Sequence[Measurement]) -> str:
    """Say what was lost in the projector, what other models with as many tokens end at, and what muting costs."""
    found = one.characters
    assert found is not None
    read = found.read[AS_IT_IS]
    words = (
        f"Off the encoder's features a probe reads {_percent(found.encoder)} of the characters (chance {_percent(found.chance)}), off the "
        f"vision tokens of {one.label} that enter the decoder {_percent(read[0])}: {100 * found.lost.value:.1f} points are lost. "
        f"After {end(one)} it reads {_percent(read[-1])}."
    )
    if one.insertions:
        later = measurements[list(measurements).index(one) :]
        rivals = [other for other in measurements if not other.insertions or other in later]
        others = [other for other in rivals if other is not one and other.token_grid == one.token_grid]
        words = " ".join([words, *(_ahead_sentence(one, other) for other in others)])
    if found.muting is not None:
        words += f" With {one.refusion} muted it reads {_percent(found.read[MUTED][-1])}: {_apart(found.muting[-1], 'than as it is')}."
    return words


def end(one: Measurement) -> str:
    """Name the place up to which the vision tokens of a model were followed."""
    passed = len(one.similarity[AS_IT_IS][MEAN]) - 1
    return "the last layer" if passed == one.num_layers else f"{_layers(passed)}, before {one.refusion} drops tokens,"


def density_sentence(one: Measurement) -> str:
    """Say how closely the text looks, on average and where most."""
    share, density = one.share[AS_IT_IS], one.density[AS_IT_IS]
    closest = max(range(len(density)), key=lambda layer: density[layer].value)
    words = (
        f"In {one.label} the text gives {_mean(share, 100):.0f} % of its attention to the vision tokens, {_mean(density):.2f} times "
        f"an even look (means over {_layers(len(share))}); it looks closest in layer {closest}, {density[closest].value:.2f} times."
    )
    if MUTED in one.density:
        words += f" With {one.refusion} muted the mean is {_mean(one.density[MUTED]):.2f}."
    return words


def similarity_sentence(one: Measurement) -> str:
    """Say how the likeness to mean and detail changes from the first to the last state."""
    parts = one.similarity[AS_IT_IS]
    words = f"In {one.label} the likeness to the mean goes from {_cka(parts[MEAN][0])} to {_cka(parts[MEAN][-1])} through the decoder"
    if parts[DETAIL][0] is None:
        return f"{words}; its tokens own one patch each, so no detail was dropped."
    words += f", that to the detail from {_cka(parts[DETAIL][0])} to {_cka(parts[DETAIL][-1])}"
    if MUTED in one.similarity:
        muted = one.similarity[MUTED]
        words += f"; muted, they end at {_cka(muted[MEAN][-1])} and {_cka(muted[DETAIL][-1])}"
    return f"{words}."


def looks_sentence(one: Measurement) -> str:
    """Say what the pictures of a model show, or why there are none."""
    if not one.insertions:
        return f"{one.label} has no re-fusion, so its vision tokens do not look again."
    if not one.looks:
        return f"{one.label} uses {one.refusion}, which records no attention to the page."
    reach = "its own region of the page" if not one.margin else f"its own region and {_patches(one.margin)} around it"
    asked = (
        "The question takes part: the words of its turn guide where the tokens look."
        if one.is_guided
        else "The image comes before the question, so where the tokens look does not depend on what is asked."
    )
    return f"In {one.label} every vision token looks at {reach}. {asked}"


def ink_sentence(one: Measurement) -> str:
    """Say whether the tokens look at what is printed."""
    found = ", ".join(
        f"{printed:.2f} and {blank:.2f} {'after layer ' + str(layer) if layer >= 0 else 'before layer 0'}"
        for layer, (printed, blank) in sorted(one.ink.items())
    )
    return f"In units of an even look, printed and blank patches of {one.label} get {found}."


def _ahead_sentence(one: Measurement, other: Measurement) -> str:
    more = ahead(one, other)
    assert more is not None and other.characters is not None
    what = "no re-fusion" if not other.insertions else other.refusion
    ends = f"Off {other.label}, with as many tokens and {what}, it then reads {_percent(other.characters.read[AS_IT_IS][len(more) - 1])}"
    return f"{ends}: {_apart(more[-1], f'than off {one.label}')}."


def _apart(gain: Interval, than: str) -> str:
    """How much less the other side reads."""
    if gain.low > 0:
        return f"{_points(gain)} less {than}"
    if gain.high < 0:
        return f"{_points(Interval(value=-gain.value, low=-gain.high, high=-gain.low))} more {than}"
    return f"{_points(gain)} less {than}, which the interval does not tell from none"


def _points(gain: Interval) -> str:
    return f"{100 * gain.value:.1f} points (95 % interval {100 * gain.low:.1f} to {100 * gain.high:.1f})"


def _percent(value: Interval) -> str:
    return f"{100 * value.value:.1f} %"


def _layers(passed: int) -> str:
    return "1 layer" if passed == 1 else f"{passed} layers"


def _patches(number: int) -> str:
    return "1 patch" if number == 1 else f"{number} patches"


def _mean(curve: list[Interval], scale: float = 1) -> float:
    return scale * sum(value.value for value in curve) / len(curve)


def _cka(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
