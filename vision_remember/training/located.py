"""YAML in which every value knows the file and line it came from, with `extends` and dotted overrides.

A recipe is read by people who mistyped something. Plain YAML loaders forget where a value stood, take the last of two equal keys, turn
`no` into false and `1e-4` into text; here each of these is refused at its file:line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+|[-+]?\d*\.?\d+[eE]\d+")  # numbers to a reader, text to YAML 1.1

DEEPEST = 20


class RecipeError(ValueError):
    """Everything wrong with a recipe, one problem a line."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, kw_only=True)
class Node:
    """A value with its place: a scalar, a list of nodes, or a dict of nodes.

    `text` is the scalar as it was written, where that differs from what it means. The place of an entry is the line of its key.
    """

    value: Any
    place: str
    text: str = ""

    def plain(self) -> Any:
        """The value without places, as `json` and `yaml` know it."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def read(path: str | Path, overrides: Sequence[str] = ()) -> Node:
    """Reads a YAML file, the files it `extends`, and dotted overrides, into one tree.

    A mapping is merged key by key over the one it extends, unless it names another `type`: then it replaces it whole, because the
    options of one type mean nothing to another. Lists are replaced. `extends` is relative to the file it stands in.

    Args:
        path: the recipe.
        overrides: `a.b=value`, with YAML values; a number picks an item of a list (`data.sources.0.limit=100`).

    Raises:
        RecipeError: unreadable YAML, a missing or circular base, an override that fits nowhere.
    """
    tree = _extended(Path(path), seen=())
    for override in overrides:
        tree = _overridden(tree, override)
    return tree


def merge(base: Node, over: Node) -> Node:
    """`over` laid on `base`: see `read` for the rule."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    if "type" in over.value and "type" in base.value and over.value["type"].value != base.value["type"].value:
        return over
    merged = dict(base.value)
    for key, child in over.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return replace(over, value=merged)


def _extended(path: Path, seen: tuple[Path, ...]) -> Node:
    here = path.resolve()
    if here in seen:
        raise RecipeError([f"{path}: extends itself through {' -> '.join(str(p.name) for p in (*seen, here))}"])
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise RecipeError([f"{path}: byte {error.start} is not UTF-8; save it as UTF-8"]) from None
    tree = _parse(text, str(path))
    base = tree.value.pop("extends", None) if isinstance(tree.value, dict) else None
    if base is None:
        return tree
    if not isinstance(base.value, str):
        raise RecipeError([f"{base.place}: extends must be the path of another recipe, not {base.value!r}"])
    if not (path.parent / base.value).is_file():
        raise RecipeError([f"{base.place}: extends {base.value}, which is not a file beside {path.name}"])
    return merge(_extended(path.parent / base.value, (*seen, here)), tree)


def _overridden(tree: Node, override: str) -> Node:
    place = f"override {override}"
    keys, equals, text = override.partition("=")
    if not equals or not all(keys.split(".")):
        raise RecipeError([f"{place}: write an override as section.key=value"])
    value = _relocated(_parse(text, "value") if text else Node(value="", place=place), place)
    if isinstance(value.value, str) and EXPONENT.fullmatch(value.value):
        value = replace(value, value=float(value.value), text="")
    return _placed(tree, keys.split("."), value)


def _placed(tree: Node, keys: Sequence[str], value: Node) -> Node:
    if not keys:
        return merge(tree, value)
    key, rest = keys[0], keys[1:]
    if isinstance(tree.value, list):
        if not key.isdigit() or int(key) >= len(tree.value):
            raise RecipeError([f"{value.place}: {key!r} picks no item of a list of {len(tree.value)}"])
        items = list(tree.value)
        items[int(key)] = _placed(items[int(key)], rest, value)
        return replace(tree, value=items)
    children = dict(tree.value) if isinstance(tree.value, dict) else {}
    children[key] = _placed(children[key], rest, value) if key in children else _nested(rest, value)
    return replace(tree, value=children)


def _nested(keys: Sequence[str], value: Node) -> Node:
    for key in reversed(keys):
        value = Node(value={key: value}, place=value.place)
    return value


def _relocated(node: Node, place: str) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {key: _relocated(child, place) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_relocated(child, place) for child in value]
    return replace(node, value=value, place=place)


def _parse(text: str, name: str) -> Node:
    loader = yaml.SafeLoader(text)
    try:
        _check_events(text, name)
        root = loader.get_single_node()
        if root is None:
            return Node(value={}, place=f"{name}:1")
        return _located(loader, root, name, root.start_mark.line + 1)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError([f"{name}:{line}: not YAML: {error.problem}"]) from None
    except yaml.YAMLError as error:
        raise RecipeError([f"{name}: not YAML: {error}"]) from None
    finally:
        loader.dispose()


def _check_events(text: str, name: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise RecipeError([f"{name}:{line}: aliases (*{event.anchor}) are not read; use extends"])
        if depth > DEEPEST:
            raise RecipeError([f"{name}:{line}: nested deeper than {DEEPEST}; no recipe is"])


def _located(loader: yaml.SafeLoader, node: yaml.Node, name: str, line: int) -> Node:
    place = f"{name}:{line}"
    if isinstance(node, yaml.MappingNode):
        children: dict[str, Node] = {}
        for key_node, child in node.value:
            key_line = key_node.start_mark.line + 1
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not key or key in children:
                why = f"{key!r} stands twice in one mapping" if key else "a key must be a word"
                raise RecipeError([f"{name}:{key_line}: {why}"])
            children[key] = _located(loader, child, name, key_line)
        return Node(value=children, place=place)
    if isinstance(node, yaml.SequenceNode):
        items = [_located(loader, child, name, child.start_mark.line + 1) for child in node.value]
        return Node(value=items, place=place)
    value = loader.construct_object(node)
    text = node.value if not isinstance(value, str) or EXPONENT.fullmatch(value) else ""
    return Node(value=value, place=place, text=text)
