"""Checks of configured arguments against the signature of what they are passed to.

A section such as ``optimizer`` names a class and its arguments. Wrong names and types are found
here, from the signature and its annotations, before anything is created: many classes accept
whatever they are given, and fail in the middle of a training or compute something else.
"""

import collections.abc
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from pkgutil import resolve_name
from types import SimpleNamespace, UnionType
from typing import Any

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from kd_lightning.utils.errors import UserError

MISSING = "???"  # OmegaConf's mark of a value that the user has to give
OWN_KEYS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")


def check_arguments(config: Any, where: str) -> None:
    """Check a section, and the sections in it, without creating anything.

    Args:
        config: the section as plain dictionaries and lists.
        where: its key, such as ``optimizer``, for the messages.

    Raises:
        UserError: if a target does not exist, or an argument has an unknown name or the wrong
            type.
    """
    if isinstance(config, list):
        for i, value in enumerate(config):
            check_arguments(value, f"{where}[{i}]")
    if not isinstance(config, Mapping):
        return
    arguments = {str(k): v for k, v in config.items() if k not in OWN_KEYS}
    if "_target_" in config:
        target = _find(config["_target_"], where)
        parameters, takes_any = _parameters(target)
        for name, value in arguments.items():
            if value == MISSING:
                raise UserError(f"{where}.{name} is required: set {where}.{name}=")
            if name in parameters:
                _check_value(value, parameters[name], f"{where}.{name}")
            elif not takes_any:
                raise UserError(
                    f"{where}.{name}: {_short(config['_target_'])} has no argument {name!r}"
                    + nearest(name, parameters)
                )
    for name, value in arguments.items():
        check_arguments(value, f"{where}.{name}")


def takes(target: Any, name: str) -> bool:
    """Return whether a class or function has an argument of a name; False if it cannot be found."""
    try:
        return name in _parameters(_find(target, ""))[0]
    except (UserError, ImportError):
        return False


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean …?`` for a misspelt name, or an empty string if nothing is close.

    >>> nearest("method.temprature", ["method.temperature", "method.alpha"])
    '; did you mean method.temperature?'
    """
    found = get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f"; did you mean {found[0]}?" if found else ""


def _find(target: Any, where: str) -> Callable[..., Any]:
    try:
        found = resolve_name(str(target))
    except ModuleNotFoundError as error:
        # A package that the target itself needs, such as that of an extra, is named as missing.
        if error.name and not str(target).startswith(error.name):
            raise
        raise UserError(f"{where}._target_: there is no {target}") from error
    except (AttributeError, ValueError) as error:  # no such name, or no name at all
        raise UserError(f"{where}._target_: there is no {target}") from error
    if not callable(found):
        raise UserError(f"{where}._target_: {target} is neither a class nor a function")
    return found


@cache
def _parameters(target: Callable[..., Any]) -> tuple[dict[str, tuple[Any, Any]], bool]:
    """Return each argument's annotation and default, and whether any other name is taken, too."""
    found: dict[str, tuple[Any, Any]] = {}
    # A class that passes ``**settings`` on to its base class takes the arguments of both.
    layers = inspect.getmro(target) if isinstance(target, type) else (target,)
    for layer in layers:
        function = vars(layer).get("__init__") if isinstance(layer, type) else layer
        if function is None:
            continue
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # written in C
            return found, True
        hints = _hints(function)
        open_ended = False
        for i, (name, parameter) in enumerate(signature.parameters.items()):
            is_self = isinstance(layer, type) and i == 0
            if parameter.kind is parameter.VAR_KEYWORD:
                open_ended = True
            elif not is_self and parameter.kind is not parameter.VAR_POSITIONAL:
                found.setdefault(name, (hints.get(name, Any), parameter.default))
        if not open_ended:
            return found, False
        # Only of our own classes is it known that they pass the others on as they are.
        if not getattr(layer, "__module__", "").startswith("kd_lightning."):
            return found, True
    return found, True


def _hints(function: Any) -> dict[str, Any]:
    function = inspect.unwrap(function)
    found: dict[str, Any] = {}
    # torch imports some of these for type checkers only.
    names = {**vars(collections.abc), **getattr(function, "__globals__", {})}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        # One by one, so that an unknown name leaves the others.
        alone = SimpleNamespace(__annotations__={name: annotation})
        with suppress(Exception):
            found |= typing.get_type_hints(alone, names)
    return found


def _check_value(value: Any, parameter: tuple[Any, Any], where: str) -> None:
    hint, default = parameter
    # None stands for a default in many signatures that do not say so; objects are created later.
    if hint is Any or not _is_plain(value) or (value is None and default is None):
        return
    for candidate in (value, _as_tuples(value)):  # YAML has no tuples
        # To typeguard, text is an iterable of anything.
        if isinstance(value, str) and typing.get_origin(hint) in (Iterable, Sequence):
            break
        try:
            check_type(candidate, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError:
            continue
        except Exception:  # an annotation that typeguard cannot read
            return
        return
    shown = "null" if value is None else repr(value)
    raise UserError(f"{where} must be {_described(hint) or 'an object'}, got {shown}")


def _is_plain(value: Any) -> bool:
    """Whether a value consists of nothing but numbers, strings, None and lists of them."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _described(hint: Any) -> str:
    """Describe what a configuration may contain for a type: ``a whole number or null``."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union or origin is UnionType:
        values = [str(value) for part in inner for value in _values(part)]
        words = [_described(part) for part in inner if not _values(part)]
        # Objects of other types cannot be written on a command line.
        plain = [word for word in words if word] or ["an object"]
        one_of = [f"one of {', '.join(dict.fromkeys(values))}"] if values else []
        return " or ".join(dict.fromkeys([*one_of, *plain]))
    if _values(hint):
        return f"one of {', '.join(map(str, _values(hint)))}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a section of settings"
    if isinstance(origin, type) and issubclass(origin, Iterable):
        count = "" if origin is not tuple or ... in inner else f" of {len(inner)}"
        return f"a list{count}, each {_described(inner[0])}" if inner else "a list"
    return "null" if hint is type(None) else NAMES.get(hint, "")


def _values(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def _short(target: str) -> str:
    return str(target).rpartition(".")[2]
