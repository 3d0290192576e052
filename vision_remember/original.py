"""Weights of the original implementations: their parameter names, translated into ours, all of them or none.

Every module whose original has parameters loads them with its own ``load_original(state_dict)``; what that needs to know
is a table of names. A table is a mapping from regular expressions to ``re`` templates:

    {r"mlp1\\.([013])\\.(weight|bias)": r"head.\\1.\\2"}      # mlp1.0.weight -> head.0.weight

Source: the names of each original, as its own file here states them; the way of loading is our choice.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

# What LLaVA and the projects built on it put before the names of a projector: a saved projector, a model, LoRA's rest.
LLAVA_PREFIXES = ("mm_projector.", "model.mm_projector.", "base_model.model.model.mm_projector.")


def load_original(
    module: nn.Module, state_dict: Mapping[str, Tensor], renames: Mapping[str, str], *, prefixes: Sequence[str] = ()
) -> None:
    """Copies the weights of an original into ``module``, after checking every name and shape.

    Args:
        module: Takes the weights, each cast to the dtype and moved to the device of its own parameter.
        state_dict: Weights under the names of the original.
        renames: Regular expression that matches a whole original name, prefix stripped -> name of our parameter or
            buffer. Several expressions may lead to one parameter, where the original goes by several names.
        prefixes: What may stand before a name; the longest that fits is stripped.

    Raises:
        ValueError: If a parameter is missing or given twice, a name is unexpected or a shape is another one. All such
            names are listed and nothing is loaded. A buffer is a fixed table: it may be given, it is never missing.
    """
    ours = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    found: dict[str, str] = {}  # our name -> original name
    used: set[str] = set()  # the expressions that matched
    stripped: Counter[str] = Counter()
    complaints: dict[str, list[str]] = {"missing": [], "unexpected": [], "given twice": [], "misshapen": []}
    for name, value in state_dict.items():
        prefix = max((prefix for prefix in ("", *prefixes) if name.startswith(prefix)), key=len)
        translated = _translated(name.removeprefix(prefix), renames, ours)
        if translated is None:
            complaints["unexpected"].append(name)
            continue
        expression, target = translated
        if target in found:
            complaints["given twice"].append(f"{name} and {found[target]}")
        elif value.shape != ours[target].shape:
            complaints["misshapen"].append(f"{name} is {list(value.shape)}, needs {list(ours[target].shape)}")
        found[target] = name
        used.add(expression)
        stripped[prefix] += 1
    prefix = stripped.most_common(1)[0][0] if stripped else ""
    for target, _ in module.named_parameters():
        if target not in found:
            complaints["missing"].append(prefix + _original_name(target, renames, used))
    if any(complaints.values()):
        lines = [f"\n  {kind}: {', '.join(names)}" for kind, names in complaints.items() if names]
        raise ValueError(
            f"{len(state_dict)} original weights do not fit the {len(ours)} of this {type(module).__name__}; "
            f"give exactly its own, and check its widths and options{''.join(lines)}"
        )
    with torch.no_grad():
        for target, name in found.items():
            ours[target].copy_(state_dict[name])


def _translated(name: str, renames: Mapping[str, str], ours: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The first expression that leads from an original name to one of ours, and the name it leads to."""
    for expression, template in renames.items():
        match = re.fullmatch(expression, name)
        if match and (target := match.expand(template)) in ours:
            return expression, target
    return None


def _original_name(target: str, renames: Mapping[str, str], used: set[str]) -> str:
    """What the original calls our parameter, by preference in the names that were used; our own name if that is open.

    Read backwards, ``r"b(\\d)\\.bn\\.(weight|bias)"`` and ``r"block.\\1.norm.\\2"`` take ``block.2.norm.bias`` to
    ``b2.bn.bias``: the groups find their text in our name, and the rest of the expression is literal.
    """
    group = re.compile(r"\((?!\?)([^()]*)\)")
    for expression in sorted(renames, key=lambda expression: expression not in used):
        groups = group.findall(expression)
        parts = re.split(r"\\(\d)", renames[expression])  # literal, number, literal, ...
        numbers = [int(number) for number in parts[1::2]]
        literal = re.sub(r"\\\W", "", group.sub("", expression))
        if re.search(r"[][(){}?*+|^$\\]", literal) or sorted(numbers) != list(range(1, len(groups) + 1)):
            continue
        pattern = "".join(f"({groups[int(part) - 1]})" if i % 2 else re.escape(part) for i, part in enumerate(parts))
        if match := re.fullmatch(pattern, target):
            text = dict(zip(numbers, match.groups(), strict=True))
            pieces = group.split(expression)  # literal, source of group 1, literal, ...
            pieces[1::2] = [text[number] for number in sorted(text)]
            return "".join(piece if i % 2 else piece.replace("\\", "") for i, piece in enumerate(pieces))
    return target
