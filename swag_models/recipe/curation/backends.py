"""Backends that compute tables: DuckDB within this process, or Spark on a cluster.

Both compute the same Ibis expressions, and read and write Parquet.
"""

from __future__ import annotations

import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet

from swag_models.atomic import atomic_write
from swag_models.errors import ConfigError
from swag_models.formatting import describe_error
from swag_models.recipe.database import duckdb_errors
from swag_models.runtime import find_versions

if TYPE_CHECKING:
    import ibis

# The packages that each backend needs, and the extra that installs them.
BACKEND_PACKAGES = {"duckdb": ("duckdb", "ibis-framework"), "spark": ("pyspark", "ibis-framework")}
BACKEND_EXTRAS = {"duckdb": "swag-models[recipe]", "spark": "swag-models[spark]"}
# Rows of a Parquet row group. Each thread of DuckDB keeps one in memory, uncompressed, until it is
# written; with the default of 122,880 rows, that alone can exceed the memory limit.
ROW_GROUP_ROWS = 30_720
ROW_GROUPS_PER_PART = 64


class Backend(ABC):
    """A connection to a database, which reads and writes tables as Parquet.

    Args:
        connection: an Ibis backend.
        scratch: folder of temporary files, removed by `open_backend` at the end.
    """

    def __init__(self, connection: Any, scratch: Path) -> None:
        self.connection = connection
        self.scratch = scratch

    @abstractmethod
    def read(self, path: Path) -> ibis.Table:
        """Read a table from a Parquet file or a folder of Parquet files."""

    @abstractmethod
    def read_all(self, paths: Sequence[Path]) -> ibis.Table:
        """Read tables with the same columns as one table."""

    @abstractmethod
    def write(self, table: ibis.Table, path: Path) -> None:
        """Compute a table and write it as Parquet, atomically.

        DuckDB writes one file, Spark a folder of files.
        """

    @abstractmethod
    def write_parts(self, table: ibis.Table, path: Path) -> None:
        """Compute a table and write it as a folder of Parquet files, for `map_parts`."""

    @abstractmethod
    def map_parts(
        self, sources: Path | Sequence[Path], target: Path, transform: Callable[..., ibis.Table]
    ) -> None:
        """Transform folders of Parquet files into another, part by part where memory requires it.

        Args:
            sources: a folder that `write_parts` or `map_parts` wrote, or several that were made
                from the same one.
            target: the folder to write.
            transform: a function of a table of each source; each row of its result depends on the
                rows made from one row only.
        """

    def count(self, table: ibis.Table) -> int:
        """Number of rows."""
        (number,) = self.fetch(table.aggregate(rows=table.count()))["rows"].to_pylist()
        return int(number)

    def store(self, rows: pyarrow.Table, path: Path) -> ibis.Table:
        """Write a pyarrow table as Parquet, atomically, and read it into the backend."""
        with atomic_write(path) as temporary:
            pyarrow.parquet.write_table(rows, temporary)
        return self.read(path)

    def fetch(self, table: ibis.Table) -> pyarrow.Table:
        """Compute a table that fits in memory."""
        path = self.scratch / "fetched.parquet"
        self.write(table, path)
        rows = pyarrow.parquet.read_table(path)
        remove_table(path)
        return rows


class DuckDBBackend(Backend):
    """DuckDB in this process. Data beyond its memory limit is spilled to the scratch folder."""

    def read(self, path: Path) -> ibis.Table:
        return self._open(f"{path}/*.parquet" if path.is_dir() else str(path))

    def read_all(self, paths: Sequence[Path]) -> ibis.Table:
        return self._open([str(path) for path in paths])

    def _open(self, paths: str | list[str]) -> ibis.Table:
        with duckdb_errors("DuckDB cannot read the posts", "replace or remove damaged files"):
            return self.connection.read_parquet(paths)

    def write(self, table: ibis.Table, path: Path) -> None:
        with atomic_write(path) as temporary:
            self._compute(table, temporary, compression="zstd")
            if path.is_dir():  # a folder written by Spark, which a file cannot replace
                remove_table(path)

    def write_parts(self, table: ibis.Table, path: Path) -> None:
        with _replace_folder(path) as temporary:
            self._compute(table, temporary, row_groups_per_file=ROW_GROUPS_PER_PART)

    def map_parts(
        self, sources: Path | Sequence[Path], target: Path, transform: Callable[..., ibis.Table]
    ) -> None:
        folders = [sources] if isinstance(sources, Path) else sources
        # DuckDB can spill everything to disk except the lists that a query collects, so it gets
        # only as many rows at a time as fit in memory.
        with _replace_folder(target) as temporary:
            temporary.mkdir()
            for name in sorted(part.name for part in folders[0].glob("*.parquet")):
                tables = [self.read(folder / name) for folder in folders]
                self._compute(transform(*tables), temporary / name)

    def _compute(self, table: ibis.Table, path: Path, **options: Any) -> None:
        with duckdb_errors("DuckDB cannot read the posts", "replace or remove damaged files"):
            self.connection.to_parquet(table, path, row_group_size=ROW_GROUP_ROWS, **options)


class SparkBackend(Backend):
    """Spark on this machine, or on a cluster whose workers can access the same folders."""

    def read(self, path: Path) -> ibis.Table:
        return self.connection.read_parquet(str(path))

    def read_all(self, paths: Sequence[Path]) -> ibis.Table:
        import ibis

        # Spark's reader accepts one path
        return ibis.union(*map(self.read, paths)) if len(paths) > 1 else self.read(paths[0])

    def write(self, table: ibis.Table, path: Path) -> None:
        with _replace_folder(path) as temporary:
            self.connection.to_parquet(table, temporary)

    def write_parts(self, table: ibis.Table, path: Path) -> None:
        self.write(table, path)

    def map_parts(
        self, sources: Path | Sequence[Path], target: Path, transform: Callable[..., ibis.Table]
    ) -> None:
        folders = [sources] if isinstance(sources, Path) else sources
        self.write(transform(*map(self.read, folders)), target)


def check_backend(kind: str, master: str | None = None) -> dict[str, str]:
    """Check that a backend exists and is installed.

    Args:
        kind: "duckdb" or "spark".
        master: see `open_backend`.

    Returns:
        The versions of its packages, by name.

    Raises:
        ConfigError: the backend is unknown or not installed, or a master is set for DuckDB.
    """
    if kind not in BACKEND_PACKAGES:
        raise ConfigError(f"invalid engine {kind!r}: allowed: {', '.join(BACKEND_PACKAGES)}")
    if kind == "duckdb" and master:
        raise ConfigError(f'master {master!r} is for Spark only; add engine="spark", or omit it')
    return find_versions(*BACKEND_PACKAGES[kind], install=BACKEND_EXTRAS[kind])


@contextmanager
def open_backend(
    kind: str, *, scratch: Path, memory: str | None, threads: int | None, master: str | None
) -> Iterator[Backend]:
    """Open a backend; close it and remove its temporary files at the end.

    Args:
        kind: "duckdb" or "spark".
        scratch: folder for temporary files.
        memory: memory limit, for example "4GB"; larger tables are spilled to `scratch`.
        threads: number of threads; by default one per CPU.
        master: where Spark runs, for example "local[2]" or "spark://host:7077"; by default as
            configured in Spark.

    Raises:
        ConfigError: the memory limit or the number of threads is invalid.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    backend = (
        _open_duckdb(scratch, memory, threads)
        if kind == "duckdb"
        else _open_spark(scratch, memory, threads, master)
    )
    try:
        yield backend
    finally:
        backend.connection.disconnect()
        shutil.rmtree(scratch, ignore_errors=True)


def remove_table(path: Path) -> None:
    """Remove a table, if it exists: a file of DuckDB or a folder of Spark."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _replace_folder(path: Path) -> Iterator[Path]:
    """Yield the name of a folder to write, which replaces `path` on success."""
    temporary = path.with_name(f".{path.name}.tmp")
    remove_table(temporary)  # left by a run that was killed
    yield temporary
    remove_table(path)
    temporary.rename(path)


def _open_duckdb(scratch: Path, memory: str | None, threads: int | None) -> DuckDBBackend:
    import duckdb
    import ibis

    settings: dict[str, Any] = {"temp_directory": str(scratch)}
    if memory:
        settings["memory_limit"] = memory
    if threads:
        settings["threads"] = threads
    try:
        connection = ibis.duckdb.connect(**settings)
    except (duckdb.ParserException, duckdb.InvalidInputException) as error:
        raise ConfigError(
            f"invalid memory {memory!r} or threads {threads!r}: {describe_error(error)}; "
            'use for example memory="4GB", threads=2'
        ) from None
    connection.raw_sql("SET enable_progress_bar = false")  # it would be printed on stdout
    return DuckDBBackend(connection, scratch)


def _open_spark(
    scratch: Path, memory: str | None, threads: int | None, master: str | None
) -> SparkBackend:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="PySpark does not yet fully support pandas")
        import ibis
        from pyspark.sql import SparkSession

        builder = SparkSession.builder.appName("swag-models")
        for name, value in (
            ("spark.sql.session.timeZone", "UTC"),
            ("spark.local.dir", str(scratch)),
            ("spark.ui.enabled", "false"),
            ("spark.ui.showConsoleProgress", "false"),
        ):
            builder = builder.config(name, value)
        if master or threads:
            builder = builder.master(master or f"local[{threads}]")
        if memory:
            # Spark knows "4g", not "4GB"
            builder = builder.config("spark.driver.memory", memory.rstrip("Bb").lower())
        return SparkBackend(ibis.pyspark.connect(builder.getOrCreate()), scratch)
