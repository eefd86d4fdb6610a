"""A JSON file that is one array is read element by element, and malformed ones are rejected."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pytest

from swag_models.recipe.curation.json_array import SIZE, is_array, list_elements
from swag_models.recipe.curation.posts import Post
from swag_models.recipe.curation.readers import read_posts

GOOD = b'{"id": %d, "tags": ["bear", "}, {"], "x": {"y": [{}, {}]}}'


def read(content: bytes) -> list[bytes]:
    file = io.BufferedReader(io.BytesIO(content))  # type: ignore[arg-type]
    assert is_array(file)
    return list(list_elements(file))


@pytest.mark.parametrize(
    ("content", "elements"),
    [
        (b"[]", []),
        (b"\xef\xbb\xbf \r\n\t[ \n]\n", []),
        (b'[1,"a" , [2], {"b": 3}]', [b"1", b'"a"', b"[2]", b'{"b": 3}']),
        (
            b'[\n  {"a": "\xc3\xa9"},\n  {"a": "\xff"}\n]\n',
            [b'{"a": "\xc3\xa9"}', b'{"a": "\xff"}'],
        ),
        (b'[{"a" 1}, {"a": 2}, x, {"a": 3}]', [b'{"a" 1}', b'{"a": 2}', b'x, {"a": 3}']),
        (b'[{"a": 1} {"a": 2}, {"a": 3}]', [b'{"a": 1} {"a": 2}', b'{"a": 3}']),
        (b'[{"a": 1}, {"a": 2}] [3]', [b'{"a": 1}', b'{"a": 2}', b"[3]"]),
        (b'[{"a": 1},]', [b'{"a": 1}', b""]),
        (b"[x]", [b"x"]),
        (b"[] x", [b"x"]),
    ],
)
def test_elements_are_yielded_as_written(content: bytes, elements: list[bytes]) -> None:
    assert read(content) == elements


@pytest.mark.parametrize("content", [b"[", b"[1", b"[1,", b'[1, {"a": [2', b'[1, "'])
def test_an_array_that_does_not_end_is_an_error(content: bytes) -> None:
    with pytest.raises(EOFError, match="the array does not end"):
        read(content)


def test_posts_around_malformed_elements_are_read(tmp_path: Path) -> None:
    elements = [GOOD % number for number in range(5)]
    elements[1] = b'{"id": 1, tags: ["bear"]}'
    elements[3] = b'{"id": 3, "tags": ["' + b"x" * (3 * SIZE) + b'"]}'
    path = tmp_path / "posts.json.gz"
    path.write_bytes(gzip.compress(b"[" + b",\n".join(elements) + b"]", 1))
    rows = list(read_posts(path))
    assert [row.id for row in rows if isinstance(row, Post)] == ["0", "2", "4"]
    rejects = [(row.reason, row.text[:12]) for row in rows if not isinstance(row, Post)]
    assert rejects[0] == ("not JSON", '{"id": 1, ta')
    assert {reason for reason, _ in rejects[1:]} == {"row too large", "not JSON"}
    path.write_bytes(gzip.compress(b"[" + b",\n".join([elements[0], b'{"id": 1'])))
    first, last = read_posts(path)
    assert isinstance(first, Post)
    assert last[1:4] == (2, "unreadable from here on", "the array does not end")


def test_memory_does_not_grow_with_an_array_in_one_line() -> None:
    peaks = []
    for count in (5000, 15_000):
        row = json.dumps({"id": 1, "tags": ["bear" * 250]}).encode() + b", "
        file = io.BufferedReader(io.BytesIO(b"[" + row * count + b"{}]"))  # type: ignore[arg-type]
        tracemalloc.start()
        assert sum(1 for _ in list_elements(file)) == count + 1
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
