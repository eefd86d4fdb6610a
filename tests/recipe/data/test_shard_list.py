"""Lists of shards and their order: equal to plain lists, in less memory and time."""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
import tracemalloc
from pathlib import Path
from unittest import mock

import pytest
from loader_support import open_loader, take
from shards_support import make_shards

from swag_models.errors import ConfigError
from swag_models.recipe.data import manifest, shards
from swag_models.recipe.data.shard_list import ShardList, order_shards
from swag_models.recipe.data.shards import find_shards
from swag_models.recipe.data.sources import open_source

URLS = (
    ["/data/shard-000000.tar"],
    ["/data/é-0.tar", "/data/è-1.tar", "", "s3://bucket/x.tar"],
    [f"https://example.org/a/shard-{number:06d}.tar" for number in range(1000)],
    ["/data/\udcff.tar", "/data/a\nb.tar", "/data/a\0.tar", "/data/a\0"],
    ["same.tar", "same.tar"],
)


@pytest.mark.parametrize("urls", URLS)
def test_a_shard_list_equals_the_list_it_was_made_from(urls: list[str]) -> None:
    made = ShardList(urls)
    assert list(made) == urls == made
    assert len(made) == len(urls)
    assert [made[number] for number in range(-len(urls), 0)] == urls
    assert made[1::2] == urls[1::2]
    assert made[::-1] == urls[::-1]
    assert urls[-1] in made
    assert pickle.loads(pickle.dumps(made)) == urls
    assert made != [*urls, "more"]
    assert made != [*urls[:-1], "other"]
    assert made != "text"
    with pytest.raises(IndexError):
        made[len(urls)]
    with pytest.raises(TypeError, match="unhashable"):
        hash(made)
    names = "\n".join(url.rpartition("/")[2] for url in urls)
    expected = hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest()
    with mock.patch("swag_models.recipe.data.shard_list.BLOCK", 3):
        assert made.names_sha256 == expected


@pytest.mark.parametrize(("count", "seed", "epoch"), [(1, 0, 0), (1000, 3, 7), (70_000, -5, 10**6)])
def test_the_order_of_an_epoch_is_that_of_the_hashes(count: int, seed: int, epoch: int) -> None:
    def hash_shard(number: int) -> bytes:
        text = f"{seed}/{epoch}/shard/{number}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    assert order_shards(count, seed, epoch).tolist() == sorted(range(count), key=hash_shard)


def test_a_shard_takes_little_memory() -> None:
    count = 50_000
    urls = [f"/data/shard-{number:06d}.tar" for number in range(count)]
    plain = sum(map(sys.getsizeof, urls)) + sys.getsizeof(urls)
    made = ShardList(urls)
    size = len(pickle.dumps(made))  # what a spawned worker receives
    assert size < 25 * count
    assert plain > 3 * size
    order_shards.cache_clear()
    tracemalloc.start()
    order_shards(count, 0, 0)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 300 * 65_536 + 40 * count, "not the hashes of all shards as Python objects"


def test_a_manifest_is_parsed_once_and_its_urls_are_used_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "a{b}"  # a pattern, if it were expanded again
    folder.mkdir()
    packed = make_shards(folder, 16, 4)
    with (
        mock.patch.object(manifest, "parse_json", wraps=manifest.parse_json) as parse,
        mock.patch.object(shards, "_expand_pattern", wraps=shards._expand_pattern) as expand,
    ):
        assert len(take(open_loader(packed, lanes=4), 1)[0].ids) == 8
    assert parse.call_count == 1
    assert not expand.called
    source = open_source(packed)
    assert find_shards(source.urls) == (source.urls, None)


def test_each_rank_looks_up_its_part_of_the_shards(tmp_path: Path) -> None:
    packed = make_shards(tmp_path, 32, 4)
    names = [
        shard["name"] for shard in json.loads((packed / "manifest.json").read_text())["shards"]
    ]
    (packed / names[5]).unlink()
    errors = []
    for rank in range(4):
        try:
            open_loader(packed, rank, 4)
        except ConfigError as error:
            errors.append((rank, str(error)))
    message = f"shard {packed / names[5]} does not exist; give a packed folder, "
    assert errors == [(1, f"{message}paths, URLs or patterns")]
