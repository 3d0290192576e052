"""From a located tree to frozen dataclasses: every unknown key, wrong type and value out of range, all in one pass.

The annotations are the schema: `int`, `float`, `bool`, `str`, `X | None`, `Literal`, `tuple[X, ...]`, `dict[str, X]`, `Any` and nested
dataclasses. Ranges stand beside the field (`number(1, minimum=1)`); what concerns several fields is the dataclass's own `problems()`,
asked only once the fields are well typed.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, Protocol, TypeVar

from vision_remember.training.located import EXPONENT, Node, RecipeError

YES_NO = {"yes", "no", "on", "off", "y", "n"}
T = TypeVar("T")


class Checked(Protocol):
    """A dataclass that can say what is wrong with its own values."""

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yields (dotted key inside this section, what is wrong and what to do)."""

    def absences(self) -> Iterable[tuple[str, str]]:
        """The same of files and folders that the values name and that are not there."""


def number(
    default: Any = dataclasses.MISSING,
    *,
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
):
    """A dataclass field with a range; `minimum` is allowed, `above` and `below` are not."""
    return dataclasses.field(default=default, metadata={"minimum": minimum, "above": above, "below": below})


def bind(cls: type[T], tree: Node, *, has_files: bool = True) -> T:
    """Builds `cls` from a tree.

    Args:
        cls: a dataclass.
        tree: its values.
        has_files: whether the files that are named must be there.

    Raises:
        RecipeError: with every problem found, each as `file:line: key: what is wrong`.
    """
    problems: list[str] = []
    value = _section(cls, tree, "", problems, has_files)
    if problems:
        raise RecipeError(problems)
    return value


def _section(cls: Any, node: Node, path: str, problems: list[str], has_files: bool) -> Any:
    if not isinstance(node.value, dict):
        problems.append(f"{node.place}: {path or 'the file'} must be a mapping of {_listed(_names(cls))}")
        return None
    before = len(problems)
    fields, hints = {field.name: field for field in dataclasses.fields(cls)}, typing.get_type_hints(cls)
    for key, child in node.value.items():
        if key not in fields:
            problems.append(f"{child.place}: unknown key {_joined(path, key)!r}{nearest(key, fields)}")
    values = {}
    for name, field in fields.items():
        if name in node.value:
            child, key = node.value[name], _joined(path, name)
            values[name] = _value(hints[name], child, key, problems, has_files)
            problems.extend(f"{child.place}: {key} {why}" for why in _out_of_range(field, values[name]))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{node.place}: {_joined(path, name)} is missing")
    if len(problems) > before:
        return None
    section = cls(**values)
    for check in ("problems", *(["absences"] if has_files else [])):
        if hasattr(cls, check):
            for key, why in getattr(section, check)():
                problems.append(f"{_deepest(node, key).place}: {_joined(path, key)}: {why}")
    return section


def _value(hint: Any, node: Node, path: str, problems: list[str], has_files: bool) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return node.plain()
    if dataclasses.is_dataclass(hint):
        return _section(hint, node, path, problems, has_files)
    if origin in (typing.Union, types.UnionType):
        if node.value is None:
            return None
        return _value(
            next(argument for argument in arguments if argument is not type(None)), node, path, problems, has_files
        )
    if origin is tuple and isinstance(node.value, list):
        return tuple(
            _value(arguments[0], item, f"{path}.{i}", problems, has_files) for i, item in enumerate(node.value)
        )
    if origin is dict and isinstance(node.value, dict):
        return {
            key: _value(arguments[1], item, f"{path}.{key}", problems, has_files) for key, item in node.value.items()
        }
    if origin is Literal and node.value in arguments:
        return node.value
    if hint is float and type(node.value) in (int, float):
        return float(node.value)
    if type(node.value) is hint and not (hint is bool and node.text.lower() in YES_NO):
        return node.value
    problems.append(f"{node.place}: {path} {_mistyped(hint, node)}")
    return None


def _mistyped(hint: Any, node: Node) -> str:
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint)
    if typing.get_origin(hint) is Literal:
        choices = [str(choice) for choice in typing.get_args(hint)]
        return f"must be one of {', '.join(choices)}, not {node.value!r}{nearest(str(node.value), choices)}"
    if wanted is None:
        return f"must be a {'list' if typing.get_origin(hint) is tuple else 'mapping'}, not {node.plain()!r}"
    if isinstance(node.value, bool) and node.text.lower() in YES_NO:
        cure = f'write "{node.text}" in quotes' if hint is str else f"write {str(node.value).lower()}"
        return f"must be {wanted}: YAML reads a bare {node.text} as {str(node.value).lower()}; {cure}"
    if hint is float and isinstance(node.value, str) and EXPONENT.fullmatch(node.value):
        return f"must be {wanted}: YAML reads {node.value} as text; write {float(node.value):.1e}"
    cure = f"; write it in quotes ({node.text!r})" if hint is str and node.text else ""
    return f"must be {wanted}, not {node.plain()!r}{cure}"


def _out_of_range(field: dataclasses.Field, value: Any) -> Iterable[str]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            yield f"is {value}: it must be a finite number"
        minimum, above, below = (field.metadata.get(name) for name in ("minimum", "above", "below"))
        if minimum is not None and not value >= minimum:
            yield f"is {value}: it must be at least {minimum}"
        if above is not None and not value > above:
            yield f"is {value}: it must be above {above}"
        if below is not None and not value < below:
            yield f"is {value}: it must be below {below}"


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'steps'?`, or the list of what is known."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; use one of {_listed(known)}"


def _deepest(node: Node, key: str) -> Node:
    for part in key.split("."):
        children = node.value
        if isinstance(children, dict) and part in children:
            node = children[part]
        elif isinstance(children, list) and part.isdigit() and int(part) < len(children):
            node = children[int(part)]
        else:
            break
    return node


def _names(cls: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
