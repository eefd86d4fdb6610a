"""What finished commands have written, so that a rerun does not repeat the work.

A record in the cache folder holds the key of the work - its inputs, options and versions - and the
states of the files that it wrote. The work runs again if any of them has changed.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from swag_models.api import Name, get_spec
from swag_models.errors import ConfigError
from swag_models.hub.cache import cache_folder
from swag_models.hub.fetch import find_weights
from swag_models.hub.hf_format import INDEX_FILE, read_index
from swag_models.paths import expand_path
from swag_models.resumable import read_result, read_state, report_done, write_result
from swag_models.runtime import find_versions


def run_unless_done(
    output: Path,
    make_key: Callable[[], Any],
    files: Sequence[Path],
    make: Callable[[], Any],
) -> Any:
    """Do some work, unless an earlier run has finished it and nothing has changed since.

    Args:
        output: the file or folder that the work writes; what messages call it.
        make_key: returns JSON values that the result depends on; None if an input is not known
            before the work, for example weights that it downloads.
        files: all files and folders that the work may write.
        make: does the work; returns JSON values.

    Returns:
        The result of this run, or of the earlier one.
    """
    # Before the work: what changes while it runs is noticed by the next run.
    key = make_key()
    with contextlib.suppress(LookupError):
        return find_finished(output, key, files)
    result = make()
    store_finished(output, make_key() if key is None else key, files, result)
    return result


def find_finished(output: Path, key: Any, files: Sequence[Path]) -> Any:
    """Return what `store_finished` stored, and tell the user that nothing is left to do.

    Raises:
        LookupError: the work is not done, or its key or a file has changed since.
    """
    record = _find_record(output)
    if key is None or record is None:
        raise LookupError(f"nothing is known of {output}")
    result = read_result(record, key, files)
    report_done(output)
    return result


def store_finished(output: Path, key: Any, files: Sequence[Path], result: Any) -> None:
    """Remember finished work; nothing is stored without a cache folder that can be written.

    Args:
        output: the file or folder that the work has written.
        key: JSON values that the result depends on; None to remember nothing.
        files: all files and folders that the work may have written.
        result: JSON values.
    """
    record = _find_record(output)
    if key is not None and record is not None:
        with contextlib.suppress(OSError):
            record.parent.mkdir(parents=True, exist_ok=True)
            write_result(record, key, files, result)


def identify_files(paths: Iterable[str | os.PathLike[str]]) -> list[Any]:
    """Return JSON values that change if one of these files or folders is changed or replaced."""
    return [[os.path.realpath(path), *_read_input_state(Path(path))] for path in paths]


def identify_weights(path: str | os.PathLike[str]) -> list[Any]:
    """Return JSON values that change with a weight file, or with an index or one of its shards."""
    path = expand_path(path)
    shards = read_index(path).shards if path.name.endswith(INDEX_FILE) else ()
    return identify_files([path, *(path.parent / name for name in shards)])


def identify_model(name: Name) -> Any:
    """Return JSON values that change with the weights or the description of a model.

    Returns:
        None if the weights are not on this machine.
    """
    spec = get_spec(name)
    path = find_weights(spec)
    return None if path is None else [spec.to_json(), identify_weights(path)]


def identify_packages(*packages: str) -> dict[str, str]:
    """Return the versions of this library, torch, Python and those of `packages` that are found."""
    versions: dict[str, str] = {}
    for package in ("swag_models", "torch", "python", *packages):
        with contextlib.suppress(ConfigError):
            versions |= find_versions(package)
    return versions


def _find_record(output: Path) -> Path | None:
    """The file of the record for an output; None without a cache folder."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(output))).hexdigest()[:32]
    with contextlib.suppress(OSError):
        return cache_folder() / "finished" / f"{name}.json"
    return None


def _read_input_state(path: Path) -> list[Any]:
    """The state of a file, and the time of its last change, which no program can set back."""
    try:
        return [read_state(path), path.stat().st_ctime_ns]
    except OSError:
        return [None]
