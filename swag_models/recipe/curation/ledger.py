"""Work in steps, each done once: what is finished is recorded with all that it depends on, and skipped when it is run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from swag_models.atomic import atomic_write
from swag_models.errors import ConfigError
from swag_models.hub.download import hash_file

Facts = dict[str, Any]


class Ledger:
    """The steps of one piece of work, recorded in a folder that one process at a time may work in.

    A step depends on its key and on the steps before it. It is skipped if a run before finished it with the same of both and
    its files are still there; the facts that it found then are given again.
    """

    def __init__(self, stack: ExitStack, folder: Path, steps: int, progress: bool) -> None:
        self.folder, self.chain = folder, ""
        folder.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(FileLock(folder / "lock").acquire(timeout=0))
        except Timeout:
            raise ConfigError(
                f"another process is at work in {folder}; wait for it, or choose another folder"
            ) from None
        # On a terminal only, and gone at the end: an error is then one line.
        self.bar = stack.enter_context(
            tqdm(total=steps, unit="step", leave=False, disable=None if progress else True)
        )

    def run(self, name: str, key: Any, files: Sequence[Path], make: Callable[[], Facts]) -> Facts:
        """The facts that `make` finds while it writes `files`; key and facts are values that JSON knows."""
        self.bar.set_description(name)
        self.chain = hashlib.sha256(
            json.dumps([self.chain, name, key], sort_keys=True).encode()
        ).hexdigest()
        record = self.folder / f"{name}.json"
        done = (
            json.loads(record.read_text())
            if record.exists() and all(file.exists() for file in files)
            else {}
        )
        if done.get("chain") != self.chain:
            record.unlink(missing_ok=True)
            done = {
                "chain": self.chain,
                "facts": json.loads(json.dumps(make())),
            }  # as they will be read again
            _write(record, done)
        self.bar.update()
        return dict(done["facts"])

    def hash_files(self, files: Sequence[Path]) -> list[dict[str, Any]]:
        """Name, bytes and SHA-256 of each file, which are read again only if their size or time has changed."""
        record = self.folder / "hashes.json"
        known: Mapping[str, str] = json.loads(record.read_text()) if record.exists() else {}
        stats = [file.stat() for file in files]
        keys = [
            f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
            for file, stat in zip(files, stats, strict=True)
        ]
        with ThreadPoolExecutor() as pool:
            hashes = list(
                pool.map(lambda key, file: known.get(key) or hash_file(file), keys, files)
            )
        _write(record, dict(zip(keys, hashes, strict=True)))
        return [
            {"name": file.name, "bytes": stat.st_size, "sha256": digest}
            for file, stat, digest in zip(files, stats, hashes, strict=True)
        ]


def _write(path: Path, value: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value))
