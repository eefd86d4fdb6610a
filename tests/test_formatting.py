"""Text for users: file names that are not UTF-8, lists of names, and Markdown tables."""

import ast
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swag_models.formatting import (
    count_noun,
    escape_unprintable,
    list_names,
    markdown_table,
    printable,
)


def test_bytes_of_a_file_name_that_are_not_utf8_are_escaped() -> None:
    assert printable(os.fsdecode(b"caf\xe9.jpg")) == r"caf\xe9.jpg"
    assert printable("café.jpg") == "café.jpg"


def test_printable_accepts_paths_and_its_result_can_be_encoded(tmp_path) -> None:
    name = printable(tmp_path / os.fsdecode(b"\xff.jpg"))
    assert name.encode("utf-8").decode("utf-8") == rf"{tmp_path}/\xff.jpg"


def test_a_long_list_of_names_ends_with_the_number_of_the_rest() -> None:
    assert list_names(["a", "b"], limit=2) == "a, b"
    assert list_names(["a", "b", "c", "d"], limit=2) == "a, b and 2 more"
    assert list_names([]) == ""


def test_a_table_has_a_header_a_rule_and_one_line_per_row() -> None:
    assert markdown_table(["name", "top-1"], [("vit", 85.3), ("regnet", None)]).splitlines() == [
        "| name | top-1 |",
        "| --- | --- |",
        "| vit | 85.3 |",
        "| regnet | None |",
    ]


def test_cells_cannot_break_the_table() -> None:
    assert markdown_table(["a"], iter([["x|y\nz"]])).splitlines()[2] == r"| x\|y z |"


def test_text_that_could_control_a_terminal_is_escaped() -> None:
    assert escape_unprintable("a\tb\r\n\x1b[2J\u202egpj\u200b") == (
        r"a\tb\r\n\x1b[2J\u202egpj\u200b"
    )
    assert escape_unprintable("猫 and ß, 100%") == "猫 and ß, 100%"


def test_a_long_text_loses_its_middle() -> None:
    assert escape_unprintable("begin" + "." * 50 + "end", limit=15) == "begin ... ..end"
    assert escape_unprintable("short", limit=5) == "short"


NOUNS = (
    "image file row class post label tag hashtag step shard name sample synset process part vector "
    "feature worker value folder rank lane term annotation item tensor key GPU target group member "
    "epoch channel model checkpoint prediction"
)
FOLLOWED = re.compile(
    rf" (held-out |repeated |finished |more )?({'|'.join(NOUNS.split())})(e?s)\b(?!/)"
)
# Numbers that are at least 2, or limits: a message says "1 images or more" for a limit of 1.
NEVER_ONE = re.compile(
    r"[A-Z_.]+|count_noun\(.*|path|name|suffix|.*(min_|max_|tail_below).*"
    r"|columns\.hashtags|(labels|images)\['?samples'?\]|len\(found\)|images.samples|len\(images.classes\)"
)


def list_counts(tree: ast.AST) -> Iterator[str]:
    """Yield the expressions in f-strings, and the formats of log messages, before a plural."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            for value, after in itertools.pairwise(node.values):
                is_text = isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant)
                if is_text and FOLLOWED.match(str(after.value)):
                    yield ast.unparse(value.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (node.value for _ in re.finditer("%d" + FOLLOWED.pattern, node.value))


def test_every_count_before_a_noun_agrees_with_it() -> None:
    wrong = [
        f"{path.name}: {count}"
        for path in sorted(Path("swag_models").rglob("*.py"))
        for count in list_counts(ast.parse(path.read_text()))
        if not NEVER_ONE.fullmatch(count) and "same in more than" not in count
    ]
    assert not wrong
    assert list(list_counts(ast.parse('f"{n} images"; log("%d rows")'))) == ["n", "%d rows"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1, "image"), "1 image"),
        ((0, "image"), "0 images"),
        ((None, "image"), "no images"),
        ((1, "class"), "1 class"),
        ((27000, "class"), "27,000 classes"),
        ((1.0, "epoch"), "1 epoch"),
        ((0.5, "epoch"), "0.5 epochs"),
        ((2, "disparity", "disparities"), "2 disparities"),
    ],
)
def test_a_count_with_its_noun(arguments: Any, text: str) -> None:
    assert count_noun(*arguments) == text
