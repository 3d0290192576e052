"""The four parts of a model that a recipe freezes or gives its own learning rate."""

from collections.abc import Iterator

from torch import nn

PART_NAMES = ("encoder", "projector", "refusion", "language_model")

Parts = dict[str, list[tuple[str, nn.Parameter]]]


def split_parameters(model: nn.Module) -> Parts:
    """Every parameter of a model once, under the part it belongs to.

    Args:
        model: A `VisionRememberForConditionalGeneration`.

    Returns:
        Part name -> named parameters. The LM head belongs to the language model (a tied head is the embedding, counted once); insertions
        between decoder layers belong to `refusion`.
    """
    parts: Parts = {name: [] for name in PART_NAMES}
    for name, parameter in model.named_parameters():
        parts[_part(name)].append((name, parameter))
    return parts


def insertions(language_model: nn.Module) -> Iterator[nn.Module]:
    """The re-fusion modules between the layers of a decoder, in order."""
    for name, module in language_model.named_modules():
        if name.rpartition(".")[2] in ("refusion", "refusion_before"):
            yield module


def _part(name: str) -> str:
    steps = name.split(".")
    if "refusion" in steps or "refusion_before" in steps:
        return "refusion"
    parts = {"vision_tower": "encoder", "multi_modal_projector": "projector", "image_newline": "projector"}
    return parts.get(steps[1], "language_model")
