"""Labels of held-out drawings: their keywords, as classes of the training set's vocabulary."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from swag_models.atomic import atomic_write
from swag_models.hub.hf_format import VOCABULARY_FILE
from swag_models.recipe.curation.columns import DEFAULT_COLUMNS, Columns
from swag_models.recipe.curation.curate import Curation, curate
from swag_models.recipe.data.pack import pack
from swag_models.runtime import import_extra

LABELS_FILE = "labels.parquet"


def label_held_out(
    posts: Path,
    folder: Path,
    vocabulary: Path,
    curation: Curation,
    *,
    columns: Columns = DEFAULT_COLUMNS,
    wordnet: str | os.PathLike[str] | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> int:
    """Label held-out posts by the classes of a vocabulary, and pack them into shards.

    Which synset a keyword means does not depend on other posts, so the posts are curated by
    themselves, without a minimum number of images. Synsets that are not in the vocabulary are left
    out, and so are images without any other.

    Args:
        posts: file of the posts.
        folder: gets own/, the curated posts, labels.parquet, vocabulary.parquet and shards/.
        vocabulary: file of the training set's vocabulary.
        curation: as for the training set.
        columns: as for the training set.
        wordnet: as for `curate`.
        processes: as for `pack`.
        progress: whether to show progress bars.

    Returns:
        The number of labelled images.
    """
    pa, parquet = import_extra("pyarrow"), import_extra("pyarrow.parquet")
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / "own"
    curate(
        [posts], own, Curation(curation.senses), columns=columns, wordnet=wordnet, progress=progress
    )
    number_of = _number_synsets(vocabulary)
    labels = []
    for identifier, synsets in read_synsets(folder).items():
        if classes := sorted(number_of[synset] for synset in synsets if synset in number_of):
            labels.append({"id": identifier, "classes": classes, "repeat": 1.0})
    schema = pa.schema(
        [("id", pa.string()), ("classes", pa.list_(pa.int64())), ("repeat", pa.float64())]
    )
    with atomic_write(folder / LABELS_FILE) as temporary:
        parquet.write_table(pa.Table.from_pylist(labels, schema), temporary)
    with atomic_write(folder / VOCABULARY_FILE) as temporary:
        temporary.write_bytes(vocabulary.read_bytes())
    pack(
        folder / LABELS_FILE,
        posts,
        folder / "shards",
        shard_size=1000,
        processes=processes,
        progress=progress,
    )
    return len(labels)


def read_synsets(folder: Path) -> dict[str, list[str]]:
    """The synsets of the keywords of each image of a held-out set, whatever the vocabulary.

    Args:
        folder: the folder that `label_held_out` labelled.
    """
    own = folder / "own"
    synset_of = {
        number: synset for synset, number in _number_synsets(own / VOCABULARY_FILE).items()
    }
    table: Any = import_extra("pyarrow.parquet").read_table(own / LABELS_FILE)
    return {
        row["id"]: [synset_of[number] for number in row["classes"]] for row in table.to_pylist()
    }


def _number_synsets(vocabulary: Path) -> dict[str, int]:
    table: Any = import_extra("pyarrow.parquet").read_table(vocabulary, columns=["class", "synset"])
    return dict(zip(table["synset"].to_pylist(), table["class"].to_pylist(), strict=True))
