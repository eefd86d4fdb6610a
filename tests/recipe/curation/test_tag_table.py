"""Every hashtag and every image is accounted for, and unknown hashtags can become classes."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from curation_support import TAGS, write_posts

from swag_models.cli import main
from swag_models.recipe.curation.curate import Curation, curate
from swag_models.recipe.hashtags import Matcher, canonicalise, load_stoplist
from swag_models.recipe.senses import parse_senses
from swag_models.recipe.wordnet import WordNet

UNKNOWN = ["RoadSign", "roadsigns", "road_sign", "kanji", "Kanji", "2013", "stickmen", "qwertz"]


def write_tags(path: Path, posts: list[list[str]]) -> Path:
    rows = [{"id": f"{number:05}", "hashtags": tags} for number, tags in enumerate(posts)]
    return write_posts(path, rows)


def make_tags(count: int, seed: int, weight: float = 0.5) -> list[list[str]]:
    make = random.Random(seed)
    words = [*TAGS, *UNKNOWN]
    weights = [1 + weight * make.random() * len(words)] * len(words)
    return [make.choices(words, weights, k=make.choice([0, 1, 1, 2, 3])) for _ in range(count)]


def account_plainly(posts: list[list[str]], matcher: Matcher, classes: set[str]) -> dict[str, int]:
    counts = Counter[str]()
    for tags in posts:
        matches = matcher.match_post(tags)
        synsets = {synset for match in matches for synset in match.synsets}
        kinds = {
            match.how if match.how in ("unknown", "stopped") else "dropped" for match in matches
        }
        if not tags:
            counts["no_hashtags"] += 1
        elif synsets & classes:
            counts["labelled"] += 1
        elif synsets:
            counts["classes_left_out"] += 1
        else:
            counts[f"only_{kinds.pop()}" if len(kinds) == 1 else "mixed"] += 1
    return counts


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_every_image_is_accounted_for(seed: int, wordnet: Path, tmp_path: Path) -> None:
    posts = [*make_tags([300, 1, 30, 300][seed], seed), ["bear"]]
    overrides = {"mouse": "drop", "crane": "drop"} if seed % 2 else {}
    curation = Curation(min_images=1 + seed % 3 * (len(posts) > 200), max_classes=3 + seed)
    files = [write_tags(tmp_path / "p.parquet", posts)]
    manifest = curate(
        files, tmp_path / "out", curation, wordnet=wordnet, overrides=overrides, progress=False
    )
    net = WordNet.load(wordnet)
    matcher = Matcher(net, "context", load_stoplist(), dict.fromkeys(overrides, ()))
    vocabulary = pq.read_table(tmp_path / "out" / "vocabulary.parquet").to_pylist()
    expected = account_plainly(posts, matcher, {row["synset"] for row in vocabulary})
    images = manifest["images"]
    assert {name: count for name, count in images.items() if count} == dict(expected)
    assert sum(images.values()) == manifest["posts"]["kept"] == len(posts)


def test_every_hashtag_is_in_the_table(wordnet: Path, tmp_path: Path) -> None:
    posts = make_tags(300, 1)
    curate(
        [write_tags(tmp_path / "p.parquet", posts)],
        tmp_path / "out",
        Curation(max_classes=4, own_classes=2),
        wordnet=wordnet,
        progress=False,
    )
    rows = pq.read_table(tmp_path / "out" / "hashtags.parquet").to_pylist()
    uses = Counter(tag for tags in posts for tag in tags)
    assert [(row["tag"], row["uses"]) for row in rows] == sorted(
        uses.items(), key=lambda item: (-item[1], item[0])
    )
    vocabulary = pq.read_table(tmp_path / "out" / "vocabulary.parquet").to_pylist()
    numbers = {row["synset"]: row["class"] for row in vocabulary}
    matcher = Matcher(WordNet.load(wordnet), "context", load_stoplist())
    for row in rows:
        match = matcher.match(row["tag"])
        assert row["key"] == canonicalise(row["tag"])
        if row["how"] == "own":
            assert match.how == "unknown"
            assert row["synsets"] in (["tag:roadsign"], ["tag:kanji"])
        else:
            assert (row["how"], tuple(row["synsets"][: len(match.synsets)])) == (
                match.how,
                match.synsets,
            )
        assert row["reason"]
        assert row["classes"] == [numbers[s] for s in row["synsets"] if s in numbers]
    assert {row["tag"] for row in rows if row["how"] == "own"} >= {"RoadSign", "roadsigns"}
    table = tmp_path / "out" / "hashtags.parquet"
    query = f"select sum(uses) from '{table}' where how = 'unknown' and len(classes) = 0"
    ((count,),) = duckdb.sql(query).fetchall()
    assert count == sum(row["uses"] for row in rows if row["how"] == "unknown")
    report = (tmp_path / "out" / "report.md").read_text()
    assert "[hashtags.parquet](hashtags.parquet)" in report


def test_frequent_unknown_hashtags_become_classes(wordnet: Path, tmp_path: Path) -> None:
    posts: list[list[str]] = [["RoadSign"], ["road_sign", "roadsigns"], ["Roadsigns", "bear"]]
    posts += [["kanji"]] * 2 + [["qwertz"], ["2013"], ["2013"], ["2013"], ["instagood"], []]
    files = [write_tags(tmp_path / "p.parquet", posts)]
    arguments = ["recipe", "curate", str(files[0]), "-o", str(tmp_path / "out"), "--quiet"]
    arguments += ["--wordnet", str(wordnet), "--own-classes", "9", "--min-images", "2"]
    assert main(arguments) == 0
    rows = pq.read_table(tmp_path / "out" / "vocabulary.parquet").to_pylist()
    assert [(row["synset"], row["hashtag"], row["images"]) for row in rows] == [
        ("tag:roadsign", "roadsign", 3),
        ("tag:kanji", "kanji", 2),
    ]
    assert sorted(rows[0]["hashtags"]) == ["RoadSign", "Roadsigns", "road_sign", "roadsigns"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "## Classes of their own" in report
    manifest = curate(files, tmp_path / "stop", Curation(own_classes=1), wordnet=wordnet,
                      add_stopwords=["roadsigns"], progress=False)  # fmt: skip
    kinds: dict[str, Any] = manifest["hashtags"]
    assert kinds["own"] == [["kanji", 2]]
    assert (kinds["uses"]["own"], kinds["uses"]["stopped"]) == (2, 3)
    assert sum(n for how, n in kinds["uses"].items() if how != "all") == kinds["uses"]["all"]
    assert ["kanji", 2] not in kinds["unknown"]


def test_a_dry_run_explains_the_most_used_hashtags_and_writes_nothing(
    wordnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    posts = [["bear"]] * 4 + [["Bears"]] * 3 + [["instagood", "qwertz"]] * 2 + [["mouse"], ["bank"]]
    files = [write_tags(tmp_path / "p.parquet", posts)]
    arguments = ["recipe", "curate", str(files[0]), "-o", str(tmp_path / "out"), "--quiet"]
    arguments += ["--wordnet", str(wordnet), "--senses", "first", "--dry-run"]
    assert main([*arguments, "4"]) == 0
    captured = capsys.readouterr()
    gloss = "massive plantigrade mammals"
    assert captured.out.splitlines() == [
        "| tag | uses | synset | name | gloss | reason |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| bear | 4 | n02131653 | bear | {gloss} | first sense |",
        f"| Bears | 3 | n02131653 | bear | {gloss} | first sense |",
        "| instagood | 2 |  |  |  | stopped |",
        "| qwertz | 2 |  |  |  | unknown |",
    ]
    assert "11 posts, 0 rejected, 11 kept" in captured.err
    assert f"nothing was written to {tmp_path / 'out'}" in captured.err
    assert main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "tmp").iterdir())
    assert main([*arguments, "0"]) == 2
    assert "invalid dry_run 0: allowed: 1 or more" in capsys.readouterr().err


def test_each_sense_is_shown_with_its_own_uses(
    wordnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    bird, machine, shore, firm = "n02012849", "n03126707", "n09213565", "n08420278"
    lines = [f"crane\t{machine}\t{bird}:truck", f"bank\t-\t{firm}:usb\t{shore}:river"]
    monkeypatch.setattr("swag_models.recipe.hashtags.load_senses", lambda: parse_senses(lines))
    posts = [["crane", "truck"]] * 3 + [["Crane", "truck"], ["Crane"], ["bank"], ["bank"], ["bear"]]
    posts += [["Bank", "river"], ["Bank"]]
    posts[5] = ["bank", "bank"]
    file, out = write_tags(tmp_path / "p.parquet", posts), tmp_path / "out"
    options = [str(file), "-o", str(out), "--wordnet", str(wordnet), "--quiet"]
    assert main(["recipe", "curate", *options, "--dry-run"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert {row[0].strip("| "): row[2] for row in rows[2:] if "truck" not in row[0]} == {
        "crane": f"{bird} (3)",
        "Crane": f"{bird} (1); {machine} (1)",
        "bank": "no noun (2)",
        "Bank": f"no noun (1); {shore} (1)",
        "bear": "n02131653",
        "river": "",
    }
    assert main(["recipe", "curate", *options]) == 0
    table = {row["tag"]: row for row in pq.read_table(out / "hashtags.parquet").to_pylist()}
    assert table["crane"]["synsets"] == [bird]
    assert set(table["Crane"]["synsets"]) == {bird, machine}
    assert (table["bank"]["how"], table["bank"]["synsets"]) == ("dropped", [])
    assert (table["Bank"]["how"], table["Bank"]["synsets"]) == ("ambiguous", [shore])
    kinds = json.loads((out / "manifest.json").read_text())["hashtags"]
    counts = {how: (kinds["distinct"][how], kinds["uses"][how]) for how in kinds["distinct"]}
    # bank twice in one post and once in another, Bank without river
    assert counts["dropped by context"] == (1, 4)
    assert (counts["ambiguous"], counts["dropped"]) == ((4, 7), (0, 0))
    for position in (0, 1):
        total, *rest = (count[position] for count in counts.values())
        assert total == sum(rest)
    report = (out / "report.md").read_text()
    assert "| dropped by context | 1 | 4 |" in report
    (line,) = [line for line in report.splitlines() if line.startswith("| crane | 5 | ")]
    assert f"{bird} crane: large long-necked wading bird (4); {machine} crane:" in line
    (line,) = [line for line in report.splitlines() if line.startswith("| bank | 5 | ")]
    assert {"nothing (3);", "land (1)"} <= {
        " ".join(p) for p in zip(line.split(), line.split()[1:])
    }
    assert f"| {firm} " in line
    assert "repaired first" not in report
