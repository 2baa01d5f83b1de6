"""JSON that anybody may have written, into typed values: what is wrong with it is a ValueError that names the field.

`json` alone lets through what only fails later, somewhere else: infinities (`1e999`), documents nested until Python's
stack ends, numbers past 64 bits, fields of another type or none.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

T = TypeVar("T")

_MAX_INT = 1 << 63


def read_json(data: bytes | str) -> Any:
    """Any JSON document; ValueError when it is none, is nested too deeply, or has a number that is not finite."""
    try:
        return json.loads(data, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def record(kind: type[T], value: Any, name: str = "") -> T:
    """A dataclass from decoded JSON, by its fields' types. `name` stands before theirs in errors.

    int is 0 .. 2^63 - 1, float is finite, an array is one list of finite floats; tuples and mappings, unions with None
    and further dataclasses are what they say. A missing field takes its default, one that is unknown is refused.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{name or 'the document'} is no JSON object")
    hints, prefix = _hints(kind), f"{name}." if name else ""
    if unknown := sorted(value.keys() - hints.keys()):
        raise ValueError(f"{prefix}{unknown[0]} is an unknown field")
    found = {}
    for field in fields(kind):  # pyright: ignore[reportArgumentType]
        if field.name in value:
            found[field.name] = _typed(hints[field.name], value[field.name], prefix + field.name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{prefix}{field.name} is missing")
    return kind(**found)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _typed(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return record(hint, value, name)  # pyright: ignore[reportArgumentType]
    if hint is int and type(value) is int and 0 <= value < _MAX_INT:
        return value
    if hint is float and type(value) in (int, float) and abs(value) < _MAX_INT:
        return float(value)
    if hint in (str, bool, NoneType) and type(value) is hint:
        return value
    if hint is np.ndarray and isinstance(value, list):
        return np.array([_typed(float, each, f"{name}[{i}]") for i, each in enumerate(value)], np.float64)
    if origin is Literal and type(value) is str and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(arguments[0], each, f"{name}[{i}]") for i, each in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: _typed(arguments[1], each, f"{name}.{key}") for key, each in value.items()}
    if origin is Union or NoneType in arguments:
        if value is None:
            return None
        return _typed(arguments[0], value, name)
    raise ValueError(f"{name} is {_short(value)}, not {getattr(hint, '__name__', None) or hint}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
