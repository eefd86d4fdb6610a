"""Settings of a run by their dotted names: `override(run, ["optimizer.lr=0.01"])`, as for `--set`.

Imports no torch.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from swag_models.decoding import decode_value, list_options
from swag_models.errors import ConfigError
from swag_models.recipe.config import Run

WORDS = {"true": True, "false": False, "none": None}  # as the command line writes values


def override(run: Run, settings: Sequence[str]) -> Run:
    """Replace values of a run.

    Args:
        run: is not changed.
        settings: "field=value" or "part.field=value". Values are words, numbers, none, true,
            false, or pairs such as 0.9,0.95. A part that is None gets its other fields' defaults.
            Steps replace epochs, and vice versa. Ranges are checked after all settings.

    Raises:
        ConfigError: a setting is malformed, names no field, or has a value that is not allowed.
    """
    data = run.to_dict()
    for setting in settings:
        path, equals, text = (part.strip() for part in setting.partition("="))
        if not (equals and path):
            raise ConfigError(f"setting {setting!r} is not field=value, as in optimizer.lr=0.01")
        *parents, name = path.split(".")
        cls: Any = Run
        values = data  # the part that the name is in; `cls` is its class
        for depth, parent in enumerate(parents):
            hint = _find_hint(cls, path, depth)
            cls = next(filter(is_dataclass, list_options(hint)), hint)
            if is_dataclass(cls) and values[parent] is None:
                values[parent] = asdict(cls())  # type: ignore[operator]
            values = values[parent]
        hint = _find_hint(cls, path, len(parents))
        value = _read_text(text, hint)
        if isinstance(value, (int, float)) and any(
            get_args(option)[-1:] == (...,) for option in list_options(hint)
        ):
            value = [value]  # a list of any length, of one number
        values[name] = decode_value(hint, value, path, positive=False)
    lengths = {"epochs", "steps"}
    given = lengths & {setting.partition("=")[0].strip() for setting in settings}
    if len(given) == 1 and data[min(given)] is not None:
        data[min(lengths - given)] = None
    return Run.from_dict(data)


def iterate_fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every field, in order; of parts, their fields."""
    for item in fields(value):
        inner = getattr(value, item.name)
        if is_dataclass(inner):
            yield from iterate_fields(inner, f"{path}{item.name}.")
        else:
            yield f"{path}{item.name}", inner


def _find_hint(cls: Any, path: str, depth: int) -> Any:
    """The annotation of the field that is part `depth` of a path; ConfigError if there is none."""
    names = path.split(".")
    hints = get_type_hints(cls) if is_dataclass(cls) else {}
    if names[depth] not in hints:
        owner, known = ".".join(names[:depth]) or "a run", ", ".join(hints) or "none"
        raise ConfigError(f"{path}: {owner} has no field {names[depth]!r}; fields: {known}")
    return hints[names[depth]]


def _read_text(text: str, hint: Any) -> Any:
    """The value of a text, which stays a text where the annotation allows it: a folder "2024"."""
    options = list_options(hint)
    if any(get_origin(option) is Literal and text in get_args(option) for option in options):
        return text  # none can be one of the words
    if str in options:
        return None if text.lower() == "none" else text
    if "," in text:
        return [_read_text(part.strip(), float) for part in text.split(",")]
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return text
