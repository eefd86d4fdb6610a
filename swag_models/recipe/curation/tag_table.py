"""What became of every hashtag, as written: hashtags.parquet.

There can be hundreds of millions of them, so the table is written and read in parts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet

from swag_models.atomic import atomic_write
from swag_models.recipe.curation.own_classes import OWN

STRINGS = pa.list_(pa.string())
# In descending order of uses, then of the alphabet.
TAGS = pa.schema(
    {
        "tag": pa.string(),  # as written
        "uses": pa.int64(),
        "key": pa.string(),  # canonical
        "how": pa.string(),  # see `hashtags.Match`, or `OWN`
        "reason": pa.string(),
        "synsets": STRINGS,
    }
)


def write_tag_table(
    tags: Path, matches: Path, senses: Path, classes: Path, output: Path
) -> dict[str, Any]:
    """Write hashtags.parquet: the rows of `TAGS` with their classes.

    Args:
        tags: Parquet file with the columns of `TAGS`.
        matches: Parquet file with the columns of `matching.MATCHES`.
        senses: Parquet file with the columns of `context.SENSES_USED`.
        classes: Parquet file with the synset of each class, in the order of classes.
        output: Parquet file to write.
    """
    synset_of_class = pyarrow.parquet.read_table(classes)["synset"]
    owners = pyarrow.parquet.read_table(matches, filters=[("how", "==", OWN)])
    used = read_senses(senses, matches)
    schema = TAGS.append(pa.field("classes", pa.list_(pa.int32())))
    with (
        atomic_write(output) as temporary,
        pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for batch in pyarrow.dataset.dataset(tags).to_batches():
            rows = _take_own(pa.Table.from_batches([batch]), owners)
            rows = _take_senses(rows, used)
            numbers = _number_classes(rows["synsets"].combine_chunks(), synset_of_class)
            writer.write_table(rows.append_column("classes", numbers).cast(schema))
    return {}


def _take_own(rows: pa.Table, owners: pa.Table) -> pa.Table:
    """Rows of `TAGS`, in which hashtags that are classes of their own say so."""
    indices = pa.compute.index_in(rows["tag"], owners["tag"])
    is_own = pa.compute.is_valid(indices)
    if not pa.compute.any(is_own).as_py():
        return rows
    lists = pa.array(
        [[synset] for synset in owners["synset"].to_pylist()], TAGS.field("synsets").type
    )
    columns = {"how": OWN, "reason": "frequent", "synsets": pa.compute.take(lists, indices)}
    for name, values in columns.items():
        column = pa.compute.if_else(is_own, values, rows[name])
        rows = rows.set_column(rows.column_names.index(name), name, column)
    return rows


def read_senses(senses: Path, matches: Path) -> dict[str, dict[str, int]]:
    """The images of each sense that posts chose of a hashtag as written, the most chosen first.

    Args:
        senses: Parquet file with the columns of `context.SENSES_USED`.
        matches: Parquet file with the columns of `matching.MATCHES`.

    Returns:
        hashtag -> synset, or "" for none -> images; hashtags whose sense does not depend on the
        post are missing.
    """
    table = pyarrow.parquet.read_table(matches, columns=["number", "synset"])
    synsets = dict(zip(table["number"].to_pylist(), table["synset"].to_pylist(), strict=True))
    used: dict[str, dict[str, int]] = {}
    for row in pyarrow.parquet.read_table(senses).to_pylist():
        used.setdefault(row["tag"], {})[synsets.get(row["number"], "")] = row["images"]
    return used


def _take_senses(rows: pa.Table, used: Mapping[str, Mapping[str, int]]) -> pa.Table:
    """Rows of `TAGS` with the senses that posts chose, or dropped if they chose none."""
    indices = pa.compute.index_in(rows["tag"], pa.array(used, pa.string()))
    depends = pa.compute.is_valid(indices)
    if not pa.compute.any(depends).as_py():
        return rows
    lists = [[synset for synset in senses if synset] for senses in used.values()]
    chosen = pa.compute.take(pa.array(lists, STRINGS), indices)
    is_dropped = pa.compute.and_(depends, pa.compute.equal(pa.compute.list_value_length(chosen), 0))
    reason = pa.compute.binary_join_element_wise("dropped", rows["reason"], ": ")
    for name, mask, values in (
        ("how", pa.compute.fill_null(is_dropped, False), "dropped"),
        ("reason", pa.compute.fill_null(is_dropped, False), reason),
        ("synsets", depends, chosen),
    ):
        column = pa.compute.if_else(mask, values, rows[name])
        rows = rows.set_column(rows.column_names.index(name), name, column)
    return rows


def _number_classes(synsets: pa.ListArray, synset_of_class: pa.Array) -> pa.ListArray:
    """The classes of each list of synsets; synsets that are no class are left out."""
    numbers = pa.compute.index_in(synsets.flatten(), synset_of_class)
    is_class = pa.compute.is_valid(numbers)
    rows = pa.compute.filter(pa.compute.list_parent_indices(synsets), is_class)
    sizes = np.bincount(rows.to_numpy(zero_copy_only=False), minlength=len(synsets))
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.compute.filter(numbers, is_class))
