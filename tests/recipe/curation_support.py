"""Posts for the tests of the curation."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TAGS = [
    *(
        "bear",
        "Bears",
        "brownbear",
        "BrownBear",
        "brown_bear",
        "ursusarctos",
        "mouse",
        "mice",
        "crane",
        "bank",
        "café",
        "raptor",
    ),
    *(
        "hotdog",
        "Istanbul",
        "policemen",
        "glasses",
        "love",
        "instagood",
        "nothingofthekind",
        "été",
        "熊",
        "animals",
    ),
]
SHARES = [1 / rank for rank in range(1, len(TAGS) + 1)]
SCHEMA = pa.schema(
    {"id": "string", "url": "string", "hashtags": pa.list_(pa.string()), "hash": "string"}
)


def make_posts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random posts, some with the same id, URL or hashtags as others."""
    make = random.Random(seed)
    posts = []
    for number in range(count):
        tags = make.choices(TAGS, SHARES, k=make.randrange(6))
        url = make.choice([None, f"https://a.example/{make.randrange(count * 4)}.jpg"])
        posts.append(
            {
                "id": f"p{number:05}",
                "url": url,
                "hashtags": tags,
                "hash": f"h{make.randrange(count * 2)}",
            }
        )
    posts += [
        {**make.choice(posts), "hashtags": make.choices(TAGS, k=3)} for _ in range(count // 20)
    ]
    make.shuffle(posts)
    return posts


def write_posts(path: Path, posts: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(posts, SCHEMA), path)
    return path
