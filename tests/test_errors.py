"""The messages of errors: one printable line, whatever file or server they quote."""

import inspect
from collections import OrderedDict
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import pytest
import torch

from swag_models import errors
from swag_models.errors import SwagModelsError, plain, plain_arguments

KINDS = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_is_one_printable_line(kind):
    error = kind("no tensor 'a\nb\x1b[1m\u202e\x00\u2028\udc80' in w.pt; save it again")
    assert str(error) == (r"no tensor 'a\nb\x1b[1m\u202e\x00\u2028\udc80' in w.pt; save it again")
    assert str(error).isprintable()


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_message_keeps_its_beginning_and_its_end(kind):
    message = str(kind(f"no tensor {'x' * 10_000} in w.pt; save it again"))
    assert len(message) == 499
    assert message.startswith("no tensor xxx")
    assert message.endswith("xxx in w.pt; save it again")


def test_the_original_text_is_kept():
    assert SwagModelsError("a\nb").args == ("a\nb",)
    assert str(SwagModelsError("猫 and ß")) == "猫 and ß"


class Loud(str):
    """A subclass that says something else than it is."""

    def __str__(self):
        return "loud"

    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


class Level(IntEnum):
    LOW = 1


class Pair(NamedTuple):
    first: int
    second: int


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Loud("a"), "a"),
        (np.float64(0.5), 0.5),
        (np.str_("a"), "a"),
        ([Loud("a"), 1], ["a", 1]),
        ((Loud("a"), [Loud("b")]), ("a", ["b"])),
        ({"a": Loud("b"), Loud("c"): (Loud("d"),)}, {"a": "b", "c": ("d",)}),
        (OrderedDict(a=1), {"a": 1}),
        (torch.Size([1, 2]), (1, 2)),
    ],
)
def test_values_of_subclasses_become_plain(value, expected):
    result = plain(value)
    assert repr(result) == repr(expected)  # which shows the types of items as well


@pytest.mark.parametrize(
    "value", [True, None, 1, 1.5, "a", b"a", Level.LOW, Pair(1, 2), np.int64(1), object(), ...]
)
def test_other_values_are_kept(value):
    assert plain(value) is value


def test_a_list_that_contains_itself():
    value = [1]
    value.append(value)
    assert plain(value)[0] == 1


def test_a_decorated_function_keeps_its_signature():
    @plain_arguments
    def function(name: str, *, size: int = 1) -> tuple[str, int]:
        """Text."""
        return name, size

    assert (function.__name__, function.__doc__) == ("function", "Text.")
    assert str(inspect.signature(function)) == "(name: str, *, size: int = 1) -> tuple[str, int]"
    (name, size) = function(Loud("a"), size=np.float64(2))
    assert (type(name), type(size)) == (str, float)
