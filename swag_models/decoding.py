"""Convert JSON values to dataclasses, checked against the fields' annotations. Imports no torch."""

import json
import sys
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from swag_models.errors import ConfigError
from swag_models.formatting import describe, list_names

T = TypeVar("T")
MAX_FLOAT = sys.float_info.max


def parse_json(text: str | bytes, *, unique_keys: bool = False) -> Any:
    """Parse JSON that may be damaged or hostile.

    Args:
        text: one JSON value; bytes are UTF-8.
        unique_keys: reject an object with a repeated key, whose last value Python would keep.

    Raises:
        ValueError: it is not JSON, is not UTF-8, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_reject_duplicates if unique_keys else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict; raise ValueError for a repeated key."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name} occurs twice")
        values[name] = value
    return values


def decode_fields(
    cls: type[T], data: Any, path: str = "", *, name: str | None = None, positive: bool = True
) -> T:
    """Make a dataclass from a JSON object with its fields, and check every type.

    Args:
        cls: the dataclass. Its fields may be int, float, bool, str, None, Literal, tuples,
            dataclasses, and unions of these. In a union of dataclasses, the object's `family`
            selects the one with the same `family`.
        data: from JSON; tuples and dataclasses are accepted as well as lists and objects.
        path: prefix of field names in messages, with a final dot.
        name: what messages call the object; by default the name of the class.
        positive: allow only positive whole numbers, as in a spec, where each is a count.

    Raises:
        ConfigError: a field is unknown, missing, of another type or out of range.
    """
    hints = _read_hints(cls)  # type: ignore[arg-type]  # mypy: a variable is not hashable
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    subject = path.rstrip(".") or name or cls.__name__
    if not isinstance(data, dict):
        raise ConfigError(
            f"{subject} is {describe(data)}; allowed: its fields ({', '.join(names)})"
        )
    if unknown := sorted(str(key) for key in data if key not in names):
        raise ConfigError(
            f"{subject} has no field {list_names(unknown)}; fields: {', '.join(names)}"
        )
    values = {
        field: decode_value(hints[field], value, f"{path}{field}", positive=positive)
        for field, value in data.items()
    }
    try:
        return cls(**values)
    except TypeError as error:  # missing arguments: "f() missing 1 required ..."
        raise ConfigError(f"{subject}: {str(error).split('() ')[-1]}") from None
    except ConfigError as error:  # from __post_init__, which does not know the path
        raise ConfigError(f"{path}{error}") from None


@cache
def _read_hints(cls: type[Any]) -> dict[str, Any]:
    """The annotations of a dataclass; cached, because thousands of objects may have one class."""
    return get_type_hints(cls)


def decode_value(hint: Any, value: Any, path: str, *, positive: bool = True) -> Any:
    """Convert a JSON value to the type of an annotation; see `decode_fields`.

    Args:
        hint: the annotation, resolved by `get_type_hints`.
        value: from JSON.
        path: what messages call the value.
        positive: allow only positive whole numbers.
    """
    options = list_options(hint)
    for option in options:
        if is_dataclass(option):
            if isinstance(value, option):  # type: ignore[arg-type]
                record: type[Any] = option  # type: ignore[assignment]
                return decode_fields(record, vars(value), f"{path}.", positive=positive)
            family = getattr(option, "family", None)
            if isinstance(value, dict) and (family is None or value.get("family") == family):
                values = {key: item for key, item in value.items() if key != "family"}
                inner = value if family is None else values
                part: type[Any] = option  # type: ignore[assignment]
                return decode_fields(part, inner, f"{path}.", positive=positive)
        elif get_origin(option) is tuple and isinstance(value, (list, tuple)):
            kinds = get_args(option)
            if kinds[-1] is Ellipsis:
                kinds = kinds[:1] * len(value)
            if len(kinds) == len(value):
                return tuple(
                    decode_value(kind, item, f"{path}[{index}]", positive=positive)
                    for index, (kind, item) in enumerate(zip(kinds, value))
                )
        elif _fits_type(option, value, positive):
            # 1 and 1.0 are equal, but JSON writes them differently
            return float(value) if option is float else value
    families = [option.family for option in options if hasattr(option, "family")]
    if families and isinstance(value, dict):
        raise ConfigError(
            f"{path}.family is {describe(value.get('family'))}; allowed: {', '.join(families)}"
        )
    allowed = " or ".join(_describe_type(option, positive) for option in options)
    raise ConfigError(f"{path} is {describe(value)}; allowed: {allowed}")


def list_options(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation itself if it is not a union."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits_type(option: Any, value: Any, positive: bool) -> bool:
    """Return whether a value is of a simple type."""
    if get_origin(option) is Literal:
        return isinstance(value, str) and value in get_args(option)
    if option is float:
        return type(value) in (int, float) and -MAX_FLOAT <= value <= MAX_FLOAT
    if option is int:  # not bool, which is a subclass of int
        return type(value) is int and (value > 0 or not positive)
    return type(value) is (get_origin(option) or option)  # dict for dict[str, Any]


def _describe_type(option: Any, positive: bool) -> str:
    """Return what messages call a type."""
    if get_origin(option) is Literal:
        return ", ".join(get_args(option))
    if get_origin(option) is tuple:
        kinds = get_args(option)
        if kinds[-1] is Ellipsis:
            return f"a list, each {_describe_type(kinds[0], positive)}"
        return f"{len(kinds)} numbers with commas between"
    if is_dataclass(option):
        names = ", ".join(field.name for field in fields(option))
        return f"its fields ({names})"
    return {
        int: "a positive whole number" if positive else "a whole number",
        float: "a finite number",
        bool: "true, false",
        str: "a text",
        dict: "an object",
        list: "a list",
        NoneType: "none",
    }[get_origin(option) or option]
