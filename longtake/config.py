"""Plain data in and out of frozen dataclasses, with errors that name the field and its file."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from longtake.errors import UserError

T = TypeVar("T")


def from_dict(cls: type[T], data: dict, where: str, base: T | None = None) -> T:
    """Build a dataclass from plain data; fields that are absent come from `base` or the defaults.

    Args:
        cls: a frozen dataclass, possibly nested.
        data: what was read from YAML or JSON.
        where: a file or option name for error messages.
        base: values for the fields that `data` leaves out.

    Raises:
        UserError: an unknown field (with the nearest known one), a missing one, or a value of the wrong type.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where} must hold named settings, got {data!r}", code=2)
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in data:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(names)}"
            raise UserError(f"{where} has no setting {key!r}; {hint}", code=2)
    values = {}
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        inherited = getattr(base, f.name) if base is not None else None
        if f.name in data:
            values[f.name] = _convert(data[f.name], hints[f.name], f"{where}: {f.name}", inherited)
        elif base is not None:
            values[f.name] = inherited
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"{where} lacks the setting {f.name!r}", code=2)
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}", code=2) from None


def _convert(value: Any, hint: Any, where: str, inherited: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where, inherited)  # type: ignore[arg-type]
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for option in args:
            if option is not type(None):
                try:
                    return _convert(value, option, where, inherited)
                except UserError:
                    continue
    elif origin is Literal:
        if value in args:
            return value
        if str(value) in args:  # YAML reads 32 as a number
            return str(value)
        raise UserError(f"{where} must be one of {', '.join(map(str, args))}, got {value!r}", code=2)
    elif origin is tuple and isinstance(value, (list, tuple)):
        if args[-1] is Ellipsis:
            return tuple(_convert(v, args[0], where, None) for v in value)
        if len(value) == len(args):
            return tuple(_convert(v, a, where, None) for v, a in zip(value, args, strict=True))
    elif origin is dict and isinstance(value, dict):
        return {k: _convert(v, args[1], f"{where}.{k}", None) for k, v in value.items()}
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif hint in (int, bool, str) and type(value) is hint:
        return value
    name = getattr(hint, "__name__", None) if origin is None else None
    raise UserError(f"{where} must be {name or str(hint).replace('typing.', '')}, got {value!r}", code=2)


def check_range(config: Any, names: str, low: float, high: float = math.inf) -> None:
    """For a dataclass's `__post_init__`: its fields must be finite and lie within [low, high].

    Args:
        names: of fields with a number, several numbers or None (which passes), separated by spaces.

    Raises:
        ValueError: one does not.
    """
    limits = f"{low:g} or more" if high == math.inf else f"between {low:g} and {high:g}"
    for name in names.split():
        given = getattr(config, name)
        values = given if isinstance(given, (list, tuple)) else [given]
        if not values or any(v is not None and not (low <= v <= high and math.isfinite(v)) for v in values):
            raise ValueError(f"{name} is {given} but must be {limits}")


def to_dict(value: Any) -> Any:
    """The plain data of a dataclass, with lists for tuples, ready for JSON or YAML."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: to_dict(v) for k, v in value.items()}
    return [to_dict(v) for v in value] if isinstance(value, (list, tuple)) else value


def override(data: dict, assignment: str) -> None:
    """Apply one `a.b.c=value` of the command line to plain data in place; the value is read as YAML."""
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise UserError(f"{assignment!r} is not of the form field.name=value", code=2)
    *parents, last = path.split(".")
    for key in parents:
        if data.get(key) is None:
            data[key] = {}
        data = data[key]
        if not isinstance(data, dict):
            raise UserError(f"{assignment!r} goes into {key!r}, which is not a group of settings", code=2)
    data[last] = read_yaml(text, assignment)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: 1e-4 is a float (YAML 1.1 reads it as text)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"),
    list("-+0123456789."),
)


_UNCAUGHT = (ValueError, LookupError, AttributeError, RecursionError)
"""What the loader lets through of values such as 2020-13-45, `!!bool x` and endless brackets."""


def read_yaml(text: str, where: str) -> Any:
    """Parse YAML safely.

    Raises:
        UserError: the text is not valid YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except _UNCAUGHT as error:
        raise UserError(f"{where} is not valid YAML: a value in it cannot be read ({error})", code=2) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{where} is not valid YAML{line}: {getattr(error, 'problem', error)}", code=2) from None
