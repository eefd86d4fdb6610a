"""Files of posts, of any format -> one table; what is no post goes to the rejects."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.dataset
import pyarrow.parquet

from swag_models.atomic import atomic_write
from swag_models.errors import ConfigError
from swag_models.recipe.curation import queries
from swag_models.recipe.curation.backends import Engine, remove
from swag_models.recipe.curation.columns import UNNAMED, Columns, parquet_columns
from swag_models.recipe.curation.ingest import convert_posts
from swag_models.recipe.curation.readers import SHOWN as CUT_AT
from swag_models.recipe.curation.readers import SUFFIXES, find_format

if TYPE_CHECKING:
    import ibis


@dataclass(frozen=True)
class Reading:
    """How posts are read: names of columns, a format if the names of files do not tell it, and whether to show progress."""

    columns: Columns = UNNAMED
    format: str | None = None
    progress: bool = True


def find_files(inputs: Sequence[str | os.PathLike[str]], format: str | None) -> list[Path]:
    """The files of posts, those of a folder by name; ConfigError if one is missing or a folder has none."""
    found = []
    for path in map(Path, inputs):
        if not path.exists():
            raise ConfigError(f"{path} does not exist; give files of posts, or folders of them")
        files = (
            [path]
            if path.is_file()
            else sorted(each for each in path.rglob("*") if _is_known(each))
        )
        if not files:
            raise ConfigError(
                f"{path} has no file of posts; they are named {' '.join(SUFFIXES)}, or those with .gz or .bz2"
            )
        found += files
    if not format:
        for path in found:
            find_format(path)  # refuses what it does not know, before any work is done
    return found


def _is_known(path: Path) -> bool:
    return (
        path.is_file()
        and Path(path.name.lower().removesuffix(".gz").removesuffix(".bz2")).suffix in SUFFIXES
    )


def unite_posts(
    engine: Engine, files: Sequence[Path], reading: Reading, folder: Path, rejects: Path
) -> tuple[ibis.Table, dict[str, int]]:
    """All posts as one table, and how many rows are no posts, by reason; those are written to `rejects`."""
    import ibis

    parquet = [file for file in files if (reading.format or find_format(file)) == "parquet"]
    rest = [file for file in files if file not in set(parquet)]
    done = convert_posts(
        rest,
        folder / "posts",
        columns=reading.columns,
        format=reading.format,
        progress=reading.progress and bool(rest),
    )
    counts = Counter(done.rejects)
    parts = [engine.read_all(done.parts)] if done.parts else []
    alike: dict[tuple[Columns, tuple[tuple[str, str], ...]], list[Path]] = defaultdict(
        list
    )  # by names and types
    for file in parquet:
        try:
            schema = pyarrow.parquet.read_schema(file)
        except pyarrow.ArrowInvalid:
            raise ConfigError(
                f"{file} is no whole Parquet file; make it again, or leave it out"
            ) from None
        kinds = tuple(zip(schema.names, map(str, schema.types), strict=True))
        alike[parquet_columns(schema, reading.columns, file), kinds].append(file)
    with atomic_write(rejects) as temporary, temporary.open("wb") as output:
        for path in done.rejects_files:
            output.write(path.read_bytes())
        for (columns, _), group in alike.items():
            rows = queries.select_posts(engine.read_all(group), columns._asdict())
            parts.append(rows.filter(rows.reason.isnull()).drop("reason"))
            unfit = folder / "unfit.parquet"
            engine.write(
                rows.filter(rows.reason.notnull()).select("id", "reason", "url", "hashtags"), unfit
            )
            shown = " ... ".join(dict.fromkeys(group[place].name for place in (0, -1)))
            for batch in pyarrow.dataset.dataset(unfit).to_batches():
                for row in batch.to_pylist():
                    counts[row["reason"]] += 1
                    text = " ".join(
                        filter(None, [row["id"], row["url"], *(row["hashtags"] or [])])
                    )[:CUT_AT]
                    output.write(
                        json.dumps({"input": shown, "reason": row["reason"], "text": text}).encode()
                        + b"\n"
                    )
            remove(unfit)
    return ibis.union(*parts) if len(parts) > 1 else parts[0], dict(sorted((+counts).items()))
