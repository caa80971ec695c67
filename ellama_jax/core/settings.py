"""Nested plain values into frozen dataclasses, checked key by key.

Owns names and types; which values make sense together is the caller's to say.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping


def build_dataclass(cls, values: Mapping, path: str = ""):
    """Builds dataclass `cls` from nested `values`.

    Args:
        cls: a dataclass whose fields are annotated by plain types or dataclasses.
        values: key -> value.
        path: what stands before the keys in messages, as `data.`.

    Raises:
        ValueError: names every key that is unknown, missing or of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {path}{near[0]}?" if near else f"known: {', '.join(fields)}."
            raise ValueError(f"{path}{key}: is no configuration key; {hint}")
    missing = [f"{path}{n}" for n, field in fields.items() if n not in values and _required(field)]
    if missing:
        raise ValueError(f"{', '.join(missing)}: must be set; configs/base.py defines every key.")
    return cls(**{name: _convert(item, hints[name], path + name) for name, item in values.items()})


def _required(field: dataclasses.Field) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _convert(value, hint, name: str):
    """Checks one value against its annotation and returns it in that type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name}: must be a section, got {value!r}.")
        return build_dataclass(hint, value, f"{name}.")
    if origin is types.UnionType:
        return None if value is None else _convert(value, arguments[0], name)
    if origin is dict and isinstance(value, Mapping):
        return {
            str(key): _convert(item, arguments[1], f"{name}.{key}") for key, item in value.items()
        }
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(item, arguments[0], f"{name}[{i}]") for i, item in enumerate(value))
    if hint is float and type(value) in (int, float):
        return float(value)
    if type(value) is hint:
        return value
    wanted = getattr(hint, "__name__", str(hint))
    raise ValueError(f"{name}: must be {wanted}, got {value!r} ({type(value).__name__}).")
