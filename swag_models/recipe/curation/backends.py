"""Where tables are computed: DuckDB within this process, or Spark on a cluster. Both take the same Ibis expressions."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swag_models.atomic import atomic_write
from swag_models.errors import ConfigError, OutputError

if TYPE_CHECKING:
    import ibis
    import pyarrow

ENGINES = {
    "duckdb": ("duckdb", "ibis-framework"),
    "spark": ("pyspark", "ibis-framework"),
}  # and their packages
PART = 16  # row groups, of 122,880 rows each


@dataclass(frozen=True)
class Engine:
    """A connection, and the one way in and out of it: Parquet."""

    kind: str
    connection: Any
    scratch: Path

    def read(self, path: Path) -> ibis.Table:
        """A table in Parquet: a file, or a folder of files."""
        source = f"{path}/*.parquet" if path.is_dir() and self.kind == "duckdb" else str(path)
        return self.connection.read_parquet(source)

    def read_all(self, paths: Sequence[Path]) -> ibis.Table:
        """Tables with the same columns, as one."""
        import ibis

        if self.kind == "duckdb":
            return self.connection.read_parquet([str(path) for path in paths])
        return ibis.union(*map(self.read, paths)) if len(paths) > 1 else self.read(paths[0])

    def count(self, table: ibis.Table) -> int:
        """Rows."""
        (number,) = self.fetch(table.aggregate(rows=table.count()))["rows"].to_pylist()
        return int(number)

    def read_rows(self, rows: pyarrow.Table, path: Path) -> ibis.Table:
        """Rows made in Python, by way of a file, which stays."""
        import pyarrow.parquet

        with atomic_write(path) as temporary:
            pyarrow.parquet.write_table(rows, temporary)
        return self.read(path)

    def fetch(self, table: ibis.Table) -> pyarrow.Table:
        """A table small enough for Python, by way of a file, which goes."""
        import pyarrow.parquet

        path = self.scratch / "fetched.parquet"
        self.write(table, path)
        rows = pyarrow.parquet.read_table(path)
        remove(path)
        return rows

    def write(self, table: ibis.Table, path: Path) -> None:
        """A table as Parquet, whole or not at all: one file by DuckDB, a folder of them by Spark."""
        if self.kind == "duckdb":
            with atomic_write(path) as temporary:
                self._copy(table, temporary, compression="zstd")
                if path.is_dir():  # which Spark left
                    remove(path)
        else:
            with _write_folder(path) as temporary:
                self._copy(table, temporary)

    def write_parts(self, table: ibis.Table, path: Path) -> None:
        """A table as a folder of Parquet files, for `map_parts`."""
        with _write_folder(path) as temporary:
            size = {"row_groups_per_file": PART} if self.kind == "duckdb" else {}
            self._copy(table, temporary, **size)

    def map_parts(
        self, source: Path, target: Path, make: Callable[[ibis.Table], ibis.Table]
    ) -> None:
        """`make` of a table whose rows do not depend on each other, part by part.

        DuckDB cannot spill the lists that it gathers, so it is given no more rows than it can hold. Spark can.
        """
        if self.kind != "duckdb":
            self.write_parts(make(self.read(source)), target)
            return
        with _write_folder(target) as temporary:
            temporary.mkdir()
            for part in sorted(source.glob("*.parquet")):
                self._copy(make(self.read(part)), temporary / part.name)

    def _copy(self, table: ibis.Table, path: Path, **options: Any) -> None:
        import duckdb

        try:
            self.connection.to_parquet(table, path, **options)
        except duckdb.OutOfMemoryException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"the memory for DuckDB is too little ({reason}); give more, or fewer threads"
            ) from None
        except duckdb.IOException as error:
            reason = str(error).splitlines()[0]
            raise OutputError(
                f"DuckDB cannot read or write ({reason}); what is done is kept, run again to go on"
            ) from None
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"DuckDB cannot read the posts ({reason}); make damaged files again, or leave them out"
            ) from None


def find_versions(kind: str, master: str | None = None) -> dict[str, str]:
    """The packages of an engine and their versions; ConfigError if there is no such engine, or it is not installed."""
    if kind not in ENGINES:
        raise ConfigError(f"engine {kind!r} is not known; it is one of: {', '.join(ENGINES)}")
    if kind == "duckdb" and master:
        raise ConfigError(f"master {master!r} is for Spark; add --engine spark, or leave it out")
    try:
        return {name: version(name) for name in ENGINES[kind]}
    except PackageNotFoundError as error:
        extra = "recipe" if kind == "duckdb" else "spark"
        raise ConfigError(
            f'{error.name} is not installed; run: pip install "swag-models[{extra}]"'
        ) from None


@contextmanager
def open_engine(
    kind: str, *, scratch: Path, memory: str | None, threads: int | None, master: str | None
) -> Iterator[Engine]:
    """An engine, for as long as it is needed.

    memory: for example "4GB"; what does not fit is kept in files under `scratch`. threads: default, one per processor.
    master: where Spark runs, for example "local[2]" or "spark://host:7077"; default, what Spark's own configuration says.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    opened = (
        _open_duckdb(scratch, memory, threads)
        if kind == "duckdb"
        else _open_spark(scratch, memory, threads, master)
    )
    try:
        yield opened
    finally:
        opened.connection.disconnect()
        shutil.rmtree(scratch, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a table, whichever engine wrote it, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _write_folder(path: Path) -> Iterator[Path]:
    """A name to write a folder under; it takes the place of `path` at the end."""
    temporary = path.with_name(f".{path.name}.tmp")
    remove(temporary)
    yield temporary
    remove(path)
    temporary.rename(path)


def _open_duckdb(scratch: Path, memory: str | None, threads: int | None) -> Engine:
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
            f"memory {memory!r} or threads {threads!r} cannot be: {str(error).splitlines()[0]}"
        ) from None
    connection.raw_sql("SET enable_progress_bar = false")  # it would go to stdout
    return Engine("duckdb", connection, scratch)


def _open_spark(
    scratch: Path, memory: str | None, threads: int | None, master: str | None
) -> Engine:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="PySpark does not yet fully support pandas")
        import ibis
        from pyspark.sql import SparkSession

        builder = SparkSession.builder.appName("swag-models").config(
            "spark.sql.session.timeZone", "UTC"
        )
        builder = builder.config("spark.local.dir", str(scratch)).config(
            "spark.ui.enabled", "false"
        )
        builder = builder.config("spark.ui.showConsoleProgress", "false")
        if master or threads:
            builder = builder.master(master or f"local[{threads}]")
        if memory:
            builder = builder.config("spark.driver.memory", memory.rstrip("Bb").lower())
        return Engine("spark", ibis.pyspark.connect(builder.getOrCreate()), scratch)
