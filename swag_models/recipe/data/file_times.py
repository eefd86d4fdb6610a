"""Whether the files of a data set were changed since a run began.

The SHA-256 of a data set depends on names and sizes only, so that it is the same on every machine.
A change that keeps the size shows in the modification time. A copy of a data set usually has other
times than the original, but then all of its files do: only if some files have their old time, the
others were changed.

The times of a run are recorded as

    sha256   SHA-256 of the name and modification time of every file
    sample   name -> time of a few files, in nanoseconds, which are chosen by a hash of the name
"""

import hashlib
import heapq
import json
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

from swag_models.errors import ConfigError
from swag_models.formatting import list_names, printable

SAMPLE_SIZE = 64  # files; if one percent of all was changed, one in 2 samples has one of them

logger = logging.getLogger("swag_models")


def read_times(files: Iterable[tuple[str, str | os.PathLike[str]]]) -> dict[str, Any]:
    """Read the modification times of files.

    Args:
        files: name within the data set, and path, of each file. What is not a file is left out,
            for example a URL.

    Returns:
        The times; see the docstring of this module.
    """
    digest, times = hashlib.sha256(), list[tuple[str, int]]()
    for name, path in files:
        try:
            times.append((name, os.stat(path).st_mtime_ns))
        except (OSError, ValueError):
            continue  # reported when it is read
    for name, time in sorted(times):
        digest.update(f"{json.dumps(name)} {time}\n".encode())
    sample = heapq.nsmallest(SAMPLE_SIZE, times, key=_hash_name)
    return {
        "sha256": digest.hexdigest(),
        "sample": {printable(name): time for name, time in sample},
    }


def check_times(recorded: Mapping[str, Any], current: Mapping[str, Any], title: str) -> None:
    """Compare the times of files of equal names and sizes.

    A copy is accepted, and said in a warning.

    Args:
        recorded: from `read_times`, when the run began.
        current: from `read_times`.
        title: what messages call the data.

    Raises:
        ConfigError: some of the files were changed.
    """
    if recorded["sha256"] == current["sha256"]:
        return
    before, now = recorded["sample"], current["sample"]
    changed = [name for name in now if before.get(name) != now[name]]
    if len(changed) == len(now):
        logger.warning(
            "all files of %s have other modification times than at the start of the run, but the "
            "same names and sizes; they are taken as a copy",
            title,
        )
        return
    names = f", for example {list_names(changed, 3)}" if changed else ""
    raise ConfigError(
        f"files of {title} were changed since the run began{names}; restore them, choose another "
        "output, or touch all files of the data to accept them as they are"
    )


def _hash_name(item: tuple[str, int]) -> bytes:
    return hashlib.blake2b(item[0].encode("utf-8", "surrogatepass"), digest_size=8).digest()
