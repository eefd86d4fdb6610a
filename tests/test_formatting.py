"""Text for users: file names that are not UTF-8, lists of names, and Markdown tables."""

import os

from swag_models.formatting import escape_unprintable, list_names, markdown_table, printable


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
