"""Read a JSON file that is one array, element by element, in bounded memory."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO

SIZE = 2**20  # bytes read at a time, and the largest element that is certain to be read
DECODER = json.JSONDecoder()
ARRAY_START = re.compile(r"\ufeff?[ \t\r\n]*\[[ \t\r\n]*(\][ \t\r\n]*)?")
ITEM_SEPARATOR = re.compile(r"[ \t\r\n]*([,\]])[ \t\r\n]*")
NEXT_OBJECT = re.compile(r"(\})[ \t\r\n]*,[ \t\r\n]*(?=\{)")  # where reading resumes after an error


def is_array(file: IO[bytes]) -> bool:
    """Whether the first character of a file is "[", after spaces; seeks back to the start."""
    start = file.read(3).removeprefix(codecs.BOM_UTF8).lstrip()
    while not start and (byte := file.read(1)):  # no more, because later bytes may be damaged
        start = byte.lstrip()
    file.seek(0)
    return start.startswith(b"[")


def list_elements(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the elements of an array as they are written, without the commas between them.

    Text that is not JSON is yielded too, up to the next object, for the caller to report.

    Args:
        file: a file for which `is_array` is true.

    Raises:
        EOFError: the array does not end.
    """
    # Bytes that are not UTF-8 become lone surrogates here, and bytes again when they are yielded.
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text, position, is_open, ended = "", 0, False, False
    while True:
        while len(text) - position < SIZE and not ended:
            chunk = file.read(SIZE)
            ended = not chunk
            text, position = text[position:] + decoder.decode(chunk, ended), 0
        if not is_open:
            start = ARRAY_START.match(text)
            assert start
            position, is_open = start.end(), not start[1]
            if not is_open:
                break
        if position == len(text):
            raise EOFError("the array does not end")
        end, following, is_open = _find_end(text, position, ended)
        yield text[position:end].encode("utf-8", "surrogateescape")
        position = following
        if not is_open:
            break
    if position < len(text):
        yield text[position:].encode("utf-8", "surrogateescape")


def _find_end(text: str, position: int, is_last: bool) -> tuple[int, int, bool]:
    """Where an element ends, where the next one starts, and whether there is a next one.

    Args:
        text: a part of the file.
        position: where the element starts.
        is_last: whether the file ends with this part.

    Raises:
        EOFError: neither the element nor the file is complete.
    """
    try:
        end = DECODER.raw_decode(text, position)[1]
    except (ValueError, RecursionError):
        separator = None
    else:
        separator = ITEM_SEPARATOR.match(text, end)
    if separator:
        return end, separator.end(), separator[1] == ","
    if found := NEXT_OBJECT.search(text, position):
        return found.end(1), found.end(), True
    if not is_last:
        return len(text), len(text), True
    content = text.rstrip(" \t\r\n")
    if not content.endswith("]"):
        raise EOFError("the array does not end")
    return len(content) - 1, len(text), False
