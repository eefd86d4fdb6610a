"""Rows of outputs of a model in a temporary file, for data sets whose outputs exceed memory.

Axes: N rows, D width.
"""

import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from swag_models.atomic import disk_errors


class StoredRows:
    """Rows (N, D) of one type in a file without a name, which disappears with its last user.

    Blocks are read instead of memory-mapped, because the pages of a mapping stay in memory until
    the system needs them, and count as memory of the process.

    Args:
        folder: where the file is; created if missing.
        width: D.
        dtype: type of the values.

    Raises:
        OutputError: the file cannot be created.
    """

    def __init__(self, folder: Path, width: int, dtype: DTypeLike = np.float32) -> None:
        self.folder, self.width, self.dtype = folder, width, np.dtype(dtype)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # closed by `finalize`, not in a `with` block, because results contain the rows
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._indices: NDArray[np.int64] | None = None  # rows of the file; None for all, in order
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return self._count, self.width

    @property
    def _row_size(self) -> int:
        return self.width * self.dtype.itemsize  # bytes

    def append(self, rows: NDArray[Any]) -> None:
        """Write rows (n, D) at the end.

        Raises:
            OutputError: the disk is full.
        """
        assert rows.shape[1] == self.width
        assert self._indices is None
        with disk_errors(self.folder):
            self._file.seek(0, os.SEEK_END)
            self._file.write(np.ascontiguousarray(rows, self.dtype).data)
            self._file.flush()  # so that a full disk is noticed here
        self._count += len(rows)

    def select(self, indices: NDArray[np.int64]) -> "StoredRows":
        """Return the rows at these indices, in their order, in the same file."""
        rows = object.__new__(StoredRows)
        rows.__dict__ |= self.__dict__
        rows._indices = indices if self._indices is None else self._indices[indices]
        rows._count = len(indices)
        rows._owner = self  # type: ignore[attr-defined]  # keeps the file open
        return rows

    def __getitem__(self, part: slice) -> NDArray[Any]:
        """Read adjacent rows (n, D)."""
        start, stop, step = part.indices(self._count)
        assert step == 1
        block = np.empty((max(0, stop - start), self.width), self.dtype)
        if self._indices is None:
            self._read(start, block)
        else:
            for row, index in zip(block, self._indices[start:stop].tolist()):
                self._read(index, row)
        return block

    def split(self, count: int) -> Iterator[NDArray[Any]]:
        """Read all rows in blocks of `count` rows; the last one may have fewer."""
        for start in range(0, self._count, count):
            yield self[start : start + count]

    def _read(self, index: int, target: NDArray[Any]) -> None:
        """Fill the target with the rows of the file from this one on."""
        if not target.size:
            return
        with disk_errors(self.folder):
            self._file.seek(index * self._row_size)
            size = self._file.readinto(target.data)
        assert size == target.nbytes
