"""What became of every hashtag, as written: hashtags.parquet.

There can be hundreds of millions of them, so the table is written and read in parts.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet

from swag_models.atomic import atomic_write
from swag_models.recipe.curation.own_classes import OWN

LIST = pa.list_(pa.string())
# In descending order of uses, then of the alphabet.
TAGS = pa.schema(
    {
        "tag": pa.string(),  # as written
        "uses": pa.int64(),
        "key": pa.string(),  # canonical
        "how": pa.string(),  # see `hashtags.Match`, or `OWN`
        "reason": pa.string(),
        "synsets": LIST,
    }
)


def write_tag_table(tags: Path, matches: Path, classes: Path, output: Path) -> dict[str, Any]:
    """Write hashtags.parquet: the rows of `TAGS` with their classes.

    Args:
        tags: Parquet file with the columns of `TAGS`.
        matches: Parquet file with the columns of `matching.MATCHES`.
        classes: Parquet file with the synset of each class, in the order of classes.
        output: Parquet file to write.
    """
    synset_of_class = pyarrow.parquet.read_table(classes)["synset"]
    owners = pyarrow.parquet.read_table(matches, filters=[("how", "==", OWN)])
    schema = TAGS.append(pa.field("classes", pa.list_(pa.int32())))
    with (
        atomic_write(output) as temporary,
        pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for batch in pyarrow.dataset.dataset(tags).to_batches():
            rows = _take_own(pa.Table.from_batches([batch]), owners)
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


def _number_classes(synsets: pa.ListArray, synset_of_class: pa.Array) -> pa.ListArray:
    """The classes of each list of synsets; synsets that are no class are left out."""
    numbers = pa.compute.index_in(synsets.flatten(), synset_of_class)
    is_class = pa.compute.is_valid(numbers)
    rows = pa.compute.filter(pa.compute.list_parent_indices(synsets), is_class)
    sizes = np.bincount(rows.to_numpy(zero_copy_only=False), minlength=len(synsets))
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.compute.filter(numbers, is_class))
