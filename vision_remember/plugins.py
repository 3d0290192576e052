"""Plug-ins: the name of a file in a room is the name of the method in it.

``load("projectors", "avg_pool")`` is the module ``vision_remember/projectors/avg_pool.py``. A plug-in file defines a
frozen, keyword-only dataclass ``Config`` and the class its room asks for (``Projector``, ``Refusion``), and says where it
comes from in a constant ``ORIGIN``; files without a ``Config`` are parts of the room itself. Options come from JSON or
YAML and are checked here, so that a misspelt key or a value of the wrong type never survives loading.
"""

import dataclasses
import difflib
import importlib
import pkgutil
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

_packages: dict[str, list[str]] = {}  # packages outside ours that add files to a room


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a plug-in comes from; the constant ``ORIGIN`` of its file, shown by ``vision-remember list``.

    Attributes:
        paper: The paper that describes it: ``"arXiv 2405.20985"``.
        code: The published code it agrees with, as owner/repository, with the file where a repository holds many.
        licence: Licence of that code.
    """

    paper: str | None = None
    code: str | None = None
    licence: str | None = None


def add_package(room: str, package: str) -> None:
    """Lets every file of an importable package take part in a room: ``add_package("projectors", "my_lab.projectors")``."""
    if package not in _rooms(room):
        _packages.setdefault(room, []).append(package)


def names(room: str) -> tuple[str, ...]:
    """The plug-ins of a room, sorted."""
    return tuple(sorted(_plugins(room)))


def load(room: str, name: str) -> types.ModuleType:
    """The module of one plug-in.

    Raises:
        ValueError: If the room has no file of that name; the nearest one is named.
    """
    plugins = _plugins(room)
    if name not in plugins:
        raise ValueError(f"{room} has no {name!r}{_nearest(name, plugins)}")
    return plugins[name]


def origin(room: str, name: str) -> Origin:
    """Where one plug-in comes from; empty when its file does not say."""
    return vars(load(room, name)).get("ORIGIN", Origin())


def build_config(room: str, options: Mapping[str, Any]) -> Any:
    """The strict ``Config`` of ``{"type": name, **options}``; lists become tuples.

    Raises:
        ValueError: For an unknown type, an unknown option, a missing one, or a value of the wrong type.
    """
    if "type" not in options:
        raise ValueError(f"{room} options {dict(options)} lack 'type'; it is one of {', '.join(names(room))}")
    name, values = options["type"], {key: value for key, value in options.items() if key != "type"}
    return strict_config(load(room, name).Config, values, where=f"{room}/{name}")


def strict_config(config_class: Any, values: Mapping[str, Any], *, where: str) -> Any:
    """A frozen config dataclass from the values of JSON or YAML; lists become tuples.

    Args:
        config_class: A dataclass.
        values: Its fields.
        where: What they describe, for error messages.

    Raises:
        ValueError: For an unknown option, a missing one, or a value of the wrong type.
    """
    hints = typing.get_type_hints(config_class)
    for key in values:
        if key not in hints:
            raise ValueError(f"{where} has no option {key!r}{_nearest(key, hints)}")
    for field in dataclasses.fields(config_class):
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in values and not has_default:
            raise ValueError(f"{where} needs option {field.name!r}")
    return config_class(**{key: _typed(value, hints[key], f"{where}: {key}") for key, value in values.items()})


def settle(config: Any, **values: Any) -> Any:
    """The config with a value for every option that it leaves open (None), so that nothing is left to defaults that may change."""
    return dataclasses.replace(config, **{key: values[key] for key in values if getattr(config, key) is None})


def complete(room: str, options: Mapping[str, Any], plugin: Any) -> dict[str, Any]:
    """The options of a built plug-in as JSON holds them, given or not: ``{"type": name, every option}``, with lists for tuples.

    Its attribute ``config`` counts where it is of the file's own ``Config``, with what was settled. Options that JSON could not give back
    (those of a plug-in whose ``Config`` has fields of other types) stay as they were given.
    """
    config = build_config(room, options)
    if type(getattr(plugin, "config", None)) is type(config):
        config = plugin.config
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}
    found = {"type": options["type"], **listed(values)}
    try:
        is_whole = build_config(room, found) == config
    except (TypeError, ValueError):
        is_whole = False
    return found if is_whole else listed(dict(options))


def listed(value: Any) -> Any:
    """A value as JSON gives it back: lists for tuples, inside of dicts too."""
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    return [listed(item) for item in value] if isinstance(value, list | tuple) else value


def _rooms(room: str) -> list[str]:
    return [f"vision_remember.{room}", *_packages.get(room, [])]


def _plugins(room: str) -> dict[str, types.ModuleType]:
    found: dict[str, types.ModuleType] = {}
    for package_name in _rooms(room):
        package = importlib.import_module(package_name)
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package_name}.{info.name}")
            if not hasattr(module, "Config"):
                continue
            if info.name in found:
                raise ValueError(
                    f"{room} has two files named {info.name!r}: {found[info.name].__name__} and {module.__name__}"
                )
            found[info.name] = module
    return found


def _nearest(name: object, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(known)}"


def _typed(value: Any, hint: Any, where: str) -> Any:
    """``value`` as ``hint`` asks: the scalar types, ``Literal``, unions and ``tuple[x, ...]``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            try:
                return _typed(value, choice, where)
            except ValueError:
                continue
    elif origin is typing.Literal:
        if value in arguments:
            return value
        raise ValueError(f"{where} is {value!r}{_nearest(value, map(str, arguments))}")
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_typed(item, arguments[0], where) for item in value)
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ValueError(f"{where} must be {getattr(hint, '__name__', None) if not arguments else hint}, got {value!r}")
