"""Errors of DuckDB in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from swag_models.errors import ConfigError, OutputError
from swag_models.formatting import describe_error
from swag_models.runtime import import_extra


@contextmanager
def duckdb_errors(damage: str, fix: str = "") -> Iterator[None]:
    """Turn DuckDB's errors in the `with` block into one-line errors of this library.

    Args:
        damage: what an error means that is due neither to memory nor to the disk, for example
            "posts.parquet is damaged"; the reason follows.
        fix: what to do about it.

    Raises:
        OutputError: a file cannot be read or written, for example because the disk is full.
        ConfigError: the memory limit is too low, or the data are damaged.
    """
    duckdb = import_extra("duckdb")
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise ConfigError(
            f"the memory limit is too low for DuckDB ({describe_error(error)}); "
            "raise memory= or lower threads="
        ) from None
    except (duckdb.IOException, duckdb.FatalException, duckdb.InternalException) as error:
        raise OutputError(
            f"DuckDB cannot read or write ({describe_error(error)}); "
            "finished work is kept: rerun the same command to resume"
        ) from None
    except duckdb.Error as error:
        raise ConfigError(f"{damage}: {_find_reason(error)}{fix and f'; {fix}'}") from None


def _find_reason(error: Exception) -> str:
    """The first line of an error; for a CSV file, which line is wrong and why."""
    place, *lines = str(error).splitlines() or [""]
    reasons = [line for line in lines if line and not line.startswith("Original Line")]
    if "CSV Error" in place and reasons:
        return f"{place.removeprefix('Invalid Input Error: ')}: {reasons[0]}"
    return describe_error(error)
