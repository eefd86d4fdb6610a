"""Curation equals a plain Python one on DuckDB and Spark, and counts every post it leaves out."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curation_support import TAGS, make_posts, write_posts

from swag_models.cli import main
from swag_models.recipe.curation.columns import Columns
from swag_models.recipe.curation.curate import Curation, curate
from swag_models.recipe.curation.sampling import Sampling, repeat_factors
from swag_models.recipe.hashtags import Matcher, load_stoplist
from swag_models.recipe.wordnet import WordNet

# Settings that make Spark faster for few rows.
SPARK_SETTINGS = """
spark.sql.shuffle.partitions 2
spark.sql.codegen.wholeStage false
spark.sql.codegen.factoryMode NO_CODEGEN
"""
TABLES = ("labels.parquet", "urls.parquet", "vocabulary.parquet", "hashtags.parquet")


def curate_plainly(
    posts: list[dict[str, Any]], wordnet: Path, curation: Curation, excluded: set[str]
) -> list[dict[str, Any]]:
    """Compute the labels as documented, without a database."""
    matcher = Matcher(WordNet.load(wordnet), curation.senses, load_stoplist())
    wanted = [post for post in posts if not {post["id"], post["hash"]} & excluded]
    by_id: dict[str, dict[str, Any]] = {}
    for post in sorted(wanted, key=lambda post: (post["url"] or "", " ".join(post["hashtags"]))):
        by_id.setdefault(post["id"], post)
    kept = sorted(by_id.values(), key=lambda post: post["id"])
    for key in ("url", "hash"):
        firsts: dict[Any, dict[str, Any]] = {}
        for post in kept:
            first = firsts.setdefault(post[key] or post["id"], {**post, "hashtags": []})
            first["hashtags"] = first["hashtags"] + post["hashtags"]
        kept = list(firsts.values())
    images = {
        post["id"]: {
            synset for match in matcher.match_post(post["hashtags"]) for synset in match.synsets
        }
        for post in kept
    }
    counts = Counter(synset for synsets in images.values() for synset in synsets)
    by_frequency = sorted(counts, key=lambda synset: (-counts[synset], synset))
    classes = [synset for synset in by_frequency if counts[synset] >= curation.min_images]
    classes = classes[: curation.max_classes]
    labels = {
        identifier: sorted(classes.index(synset) for synset in synsets if synset in classes)
        for identifier, synsets in images.items()
    }
    labels = {identifier: indices for identifier, indices in labels.items() if indices}
    rarest = Counter(indices[-1] for indices in labels.values())
    if curation.sampling.kind == "metaclip":
        return draw_plainly(labels, [counts[synset] for synset in classes], curation.sampling)
    factors = repeat_factors(
        [counts[synset] for synset in classes],
        [rarest[index] for index in range(len(classes))],
        curation.sampling,
    )
    return [
        {"id": identifier, "classes": indices, "repeat": factors[indices[-1]]}
        for identifier, indices in sorted(labels.items())
    ]


def draw_plainly(
    labels: dict[str, list[int]], counts: list[int], sampling: Sampling
) -> list[dict[str, Any]]:
    """Factors of MetaCLIP, in float64 and rounded."""
    total = sum(counts)
    tails = {count: sum(c for c in counts if c < count) for count in counts}
    chosen = max(count for count, tail in tails.items() if tail <= 0.06 * total)
    threshold = sampling.threshold or chosen
    kept = {
        identifier: 1 - math.prod(1 - min(1, threshold / counts[index]) for index in indices)
        for identifier, indices in labels.items()
    }
    scale = 1.0
    if sampling.epoch_ratio:
        scale = sampling.epoch_ratio * len(kept) / math.fsum(kept.values())
    return [
        {"id": name, "classes": labels[name], "repeat": pytest.approx(scale * share, abs=1e-4)}
        for name, share in sorted(kept.items())
    ]


@pytest.mark.parametrize(
    "curation",
    [
        Curation(),
        Curation("all", min_images=5, max_classes=8, sampling=Sampling("uniform", epoch_ratio=3)),
        Curation("drop", sampling=Sampling(threshold=40)),
        Curation(sampling=Sampling(tail_share=0.4, tail_below=60)),
        Curation("drop", sampling=Sampling("metaclip", threshold=12.5)),
        Curation(sampling=Sampling("metaclip", epoch_ratio=2)),
    ],
    ids=lambda curation: f"{curation.senses}-{curation.sampling.kind}",
)
def test_labels_equal_those_of_a_plain_python_curation(
    curation: Curation, wordnet: Path, tmp_path: Path
) -> None:
    posts = make_posts(400)
    excluded = {"p00003", "p00007", posts[0]["hash"], "never seen"}
    (tmp_path / "exclude.txt").write_text("\n".join(sorted(excluded)) + "\n")
    files = [write_posts(tmp_path / f"{n}.parquet", posts[n::2]) for n in range(2)]
    manifest = curate(
        files,
        tmp_path / "out",
        curation,
        wordnet=wordnet,
        exclude=tmp_path / "exclude.txt",
        progress=False,
    )
    labels = pq.read_table(tmp_path / "out" / "labels.parquet").to_pylist()
    assert labels == curate_plainly(posts, wordnet, curation, excluded)
    vocabulary = pq.read_table(tmp_path / "out" / "vocabulary.parquet").to_pylist()
    assert [row["class"] for row in vocabulary] == list(range(len(vocabulary)))
    for row in vocabulary:
        with_class = [label for label in labels if row["class"] in label["classes"]]
        assert row["images"] == len(with_class)
        assert row["samples"] == math.fsum(label["repeat"] for label in with_class)
    urls = pq.read_table(tmp_path / "out" / "urls.parquet").to_pylist()
    with_url = {row["id"] for row in urls}
    assert [row["id"] for row in urls] == [
        label["id"] for label in labels if label["id"] in with_url
    ]
    assert {label["id"] for label in labels} - with_url <= {
        post["id"] for post in posts if post["url"] is None
    }
    assert {(row["id"], row["url"]) for row in urls} <= {(p["id"], p["url"]) for p in posts}
    assert manifest["urls"] == len(urls)
    counts = manifest["posts"]
    assert counts["read"] == len(posts)
    left_out = [
        counts[name] for name in ("excluded", "repeated_ids", "repeated_urls", "repeated_hashes")
    ]
    assert counts["kept"] == counts["read"] - sum(left_out)
    assert min(left_out) > 0
    assert manifest["labels"]["samples"] == math.fsum(label["repeat"] for label in labels)


def test_spellings_and_synonyms_are_one_class(wordnet: Path, tmp_path: Path) -> None:
    tags = ["brownbear", "brown_bear", "BrownBears", "ursusarctos", "\uff22rown\u3000Bear"]
    posts = [
        {"id": str(n), "url": None, "hashtags": [tag, tag], "hash": None}
        for n, tag in enumerate(tags)
    ]
    curate(
        [write_posts(tmp_path / "p.parquet", posts)],
        tmp_path / "out",
        wordnet=wordnet,
        progress=False,
    )
    (row,) = pq.read_table(tmp_path / "out" / "vocabulary.parquet").to_pylist()
    assert (row["synset"], row["hashtag"], row["images"]) == ("n02132136", "brownbear", 5)
    assert sorted(row["hashtags"]) == sorted(tags)


def spark_reason() -> str:
    pytest.importorskip("pyspark")
    return "" if shutil.which("java") else "no Java: apt install openjdk-17-jre-headless"


@pytest.mark.slow
def test_spark_gives_the_same_rows(
    wordnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := spark_reason():
        pytest.skip(reason)
    (tmp_path / "spark-defaults.conf").write_text(SPARK_SETTINGS)
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    captions = [
        {
            "id": str(n),
            "caption": f"café 🐻 &#35;x https://a.example/#mouse #{tag}#Bears \uff03Istanbul",
        }
        for n, tag in enumerate(TAGS)
    ]
    (tmp_path / "captions.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in captions) + "{broken\n"
    )
    (tmp_path / "exclude.txt").write_text("\ufeffp00003\r\n")
    pq.write_table(
        pa.Table.from_pylist(
            [{"key": 10**6 + n, "caption": row["caption"]} for n, row in enumerate(captions)]
        ),
        tmp_path / "i.parquet",
    )
    inputs = [
        write_posts(tmp_path / "posts.parquet", make_posts(300)),
        tmp_path / "captions.jsonl",
        tmp_path / "i.parquet",
    ]
    # a bank is a mouse in a language that has words of its own as well
    words = {"bank": "02330245", "nothingofthekind": "03126707", "\u718a": "02131653"}
    lines = [f"{offset}-n\tlemma\t{word}\n" for word, offset in words.items()]
    (tmp_path / "words.tab").write_text("# words\txxx\n" + "".join(lines))
    options = {"wordnet": wordnet, "exclude": tmp_path / "exclude.txt", "progress": False}
    options["languages"] = [tmp_path / "words.tab"]
    rules = Curation(max_classes=8, own_classes=2)
    theirs = curate(inputs, tmp_path / "spark", rules, engine="spark", master="local[2]", **options)  # type: ignore[arg-type]
    ours = curate(inputs, tmp_path / "duckdb", rules, engine="duckdb", **options)  # type: ignore[arg-type]
    assert [word for word, _ in ours["hashtags"]["own"]] == ["\u00e9t\u00e9"]
    assert [row[0] for row in ours["hashtags"]["false_friends"]] == ["bank"]
    assert ours["hashtags"]["distinct"]["foreign"] == 2
    assert sum(ours["images"].values()) == ours["posts"]["kept"]
    for name in TABLES:
        a, b = (pq.read_table(tmp_path / engine / name) for engine in ("spark", "duckdb"))
        assert a.to_pylist() == b.to_pylist(), name
    assert {key: value for key, value in theirs.items() if key != "versions"} == {
        key: value for key, value in ours.items() if key != "versions"
    }
    assert ours["posts"]["rejected"] == {"not JSON": 1}
    balanced = replace(rules, sampling=Sampling("metaclip", threshold=20))
    curate(inputs, tmp_path / "spark", balanced, engine="spark", master="local[2]", **options)  # type: ignore[arg-type]
    curate(inputs, tmp_path / "duckdb", balanced, **options)  # type: ignore[arg-type]
    for name in ("labels.parquet", "vocabulary.parquet"):
        a, b = (pq.read_table(tmp_path / engine / name) for engine in ("spark", "duckdb"))
        assert a.to_pylist() == b.to_pylist(), name
    labels = {
        row["id"]: row["classes"]
        for row in pq.read_table(tmp_path / "duckdb" / "labels.parquet").to_pylist()
    }
    assert labels["0"] == labels["1000000"], (
        "a caption gives the same hashtags to Python and to SQL"
    )


def test_malformed_rows_are_counted_and_written_to_a_file(wordnet: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"id": 1, "hashtags": ["bear"]}\nno json\n{"hashtags": ["bear"]}\n'
    )
    write_posts(
        tmp_path / "b.parquet",
        [{"id": None, "url": "u", "hashtags": ["bear"]}, {"id": "", "hashtags": None}],
    )
    manifest = curate(
        [tmp_path / "a.jsonl", tmp_path / "b.parquet"],
        tmp_path / "out",
        wordnet=wordnet,
        progress=False,
    )
    counts = manifest["posts"]
    assert (counts["read"], counts["kept"], counts["rejected"]) == (
        5,
        1,
        {"no id": 3, "not JSON": 1},
    )
    rejects = [
        json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    ]
    assert Counter(row["reason"] for row in rejects) == {"no id": 3, "not JSON": 1}
    assert {row["input"] for row in rejects} >= {"b.parquet"}


def test_images_that_img2dataset_could_not_download_are_rejected(
    wordnet: Path, tmp_path: Path
) -> None:
    rows = [
        {"key": str(n), "caption": "#bear", "status": status}
        for n, status in enumerate(["success", "failed_to_download"])
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    manifest = curate(
        [tmp_path / "00000.parquet"], tmp_path / "out", wordnet=wordnet, progress=False
    )
    assert (manifest["posts"]["rejected"], manifest["labels"]["images"]) == (
        {"not downloaded": 1},
        1,
    )
    (line,) = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "input": "00000.parquet",
        "reason": "not downloaded",
        "text": "1 bear",
    }


def test_posts_with_other_licenses_are_left_out(wordnet: Path, tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "tags": ["bear"], "license": name}
        for n, name in enumerate(["CC BY", "CC0", "CC BY-NC", None, "CC0"])
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "recipe",
        "curate",
        str(tmp_path / "p.jsonl"),
        "-o",
        str(tmp_path / "out"),
        "--wordnet",
        str(wordnet),
    ]
    assert main([*arguments, "--keep-license", "CC0", "--keep-license", "CC BY"]) == 0
    labels = pq.read_table(tmp_path / "out" / "labels.parquet").to_pylist()
    assert [row["id"] for row in labels] == ["0", "1", "4"]
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["posts"]
    assert (counts["other_licenses"], counts["excluded"], counts["kept"]) == (2, 0, 3)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_missing_values_unite_no_posts_and_hashes_ignore_the_case(
    suffix: str, wordnet: Path, tmp_path: Path
) -> None:
    values = [
        *(("1", "nan", "NULL"), ("2", "nan", "NULL"), ("3", "<NA>", " "), ("4", "\\N", " None")),
        *(("nan", "x", "y"), (" ", "x", "y"), ("5", "0aF9", "https://a/5"), ("6", "0Af9", "")),
        *(("7", "aF9_", ""), ("8", "Af9_", ""), ("9", "ABC1", "")),
    ]
    rows = [{"id": key, "hash": digest, "url": url, "tags": "bear"} for key, digest, url in values]
    posts = tmp_path / f"p.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), posts)
    elif suffix == "jsonl":
        posts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(row.values()) for row in rows]
        posts.write_text("\n".join(["id,hash,url,tags", *lines]))
    (tmp_path / "exclude.txt").write_text("abC1\n")
    options = {"wordnet": wordnet, "exclude": tmp_path / "exclude.txt", "progress": False}
    counts = curate([posts], tmp_path / "out", **options)["posts"]
    assert counts["rejected"] == {"no id": 2}
    assert (counts["repeated_hashes"], counts["repeated_urls"], counts["excluded"]) == (1, 0, 1)
    labels = pq.read_table(tmp_path / "out" / "labels.parquet")["id"].to_pylist()
    assert labels == ["1", "2", "3", "4", "5", "7", "8"]
    urls = pq.read_table(tmp_path / "out" / "urls.parquet").to_pylist()
    assert urls == [{"id": "5", "url": "https://a/5"}]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_floats_that_have_lost_digits_are_no_ids(
    suffix: str, wordnet: Path, tmp_path: Path
) -> None:
    ids = [1.0, -0.0, 2.0**53 - 1, 2.0**53, 1e300, 0.5]
    posts = tmp_path / f"p.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"id": ids, "tags": ["bear"] * len(ids)}), posts)
    else:
        posts.write_text("".join(json.dumps({"id": key, "tags": ["bear"]}) + "\n" for key in ids))
    counts = curate([posts], tmp_path / "out", wordnet=wordnet, progress=False)["posts"]
    assert counts["rejected"] == {"id is not text or a whole number": 3}
    labels = pq.read_table(tmp_path / "out" / "labels.parquet")["id"].to_pylist()
    assert labels == ["0", "1", str(2**53 - 1)]


@pytest.mark.parametrize("key", ["hash", pytest.param("url", marks=pytest.mark.slow)])
def test_posts_of_one_image_become_one_with_all_their_hashtags(
    key: str, wordnet: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "b", "tags": ["bear", "crane"], key: "same"},
        {"id": "a", "tags": ["bear"], key: "same"},
        {"id": "c", "tags": ["bank"], key: "same"},
        {"id": "d", "tags": ["bear"], key: None},
        {"id": "e", "tags": ["bear"]},
        {"id": "f", "tags": ["bear"], key: ""},
        {"id": "g", "tags": ["bear"], key: ""},
        {"id": "h", "tags": ["bear"], key: "Same"},
        *({"id": f"z{n:03}", "tags": [tag], key: "gone"} for n, tag in enumerate(TAGS * 5)),
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = curate([tmp_path / "p.jsonl"], tmp_path / "out", wordnet=wordnet, progress=False)
    labels = pq.read_table(tmp_path / "out" / "labels.parquet").to_pylist()
    # 110 posts are more than those of one image: their hashtags are not united
    assert {row["id"]: len(row["classes"]) for row in labels} == {
        **dict.fromkeys("defgh", 1),
        "a": 3,
        "z000": 1,
    }
    assert f"{key} is the same in more than 100 posts, for 1 of its values:" in caplog.text
    counts = manifest["posts"]
    assert counts["repeated_urls" if key == "url" else "repeated_hashes"] == 2 + 109
    assert (counts["kept"], counts["excluded"]) == (7, 0)
    report = (tmp_path / "out" / "report.md").read_text()
    unknown = "unknown: no post has a hash"
    assert f"| repeated hash | {unknown if key == 'url' else 111} |" in report


def test_columns_can_have_other_names_and_types(wordnet: Path, tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"n": [1, 2], "words": ["bear, crane", '["mouse"]'], "id": ["a", "b"]}),
        tmp_path / "p.parquet",
    )
    columns = Columns(id="n", hashtags="words")
    curate(
        [tmp_path / "p.parquet"], tmp_path / "out", columns=columns, wordnet=wordnet, progress=False
    )
    labels = pq.read_table(tmp_path / "out" / "labels.parquet").to_pylist()
    assert [(row["id"], len(row["classes"])) for row in labels] == [("1", 2), ("2", 1)]


def test_the_command_and_its_report(
    wordnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_posts(tmp_path / "p.parquet", make_posts(200))
    arguments = [
        "recipe",
        "curate",
        str(tmp_path / "p.parquet"),
        "-o",
        str(tmp_path / "out"),
        "--wordnet",
        str(wordnet),
    ]
    assert main([*arguments, "--senses", "all", "--min-images", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path}/out/report.md\n"
    assert "210 posts, 0 rejected" in captured.err
    report = (tmp_path / "out" / "report.md").read_text()
    for line in (
        "| posts read | 210 |",
        "## ImageNet-1k",
        "| instagood |",
        "| crane |",
        "| nothingofthekind |",
    ):
        assert line in report
    for plot in ("frequency", "labels", "coverage"):
        assert f"(report/{plot}.png)" in report
        assert (tmp_path / "out" / "report" / f"{plot}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jsonl"], "missing.jsonl does not exist"),
        (["p.parquet", "--max-classes", "0"], "invalid max_classes 0: allowed: 1 or more"),
        (["p.parquet", "--min-images", "1000"], "no class has 1000 images or more: of the"),
        (["p.parquet", "--memory", "much"], "invalid memory 'much'"),
        (["p.parquet", "--master", "local"], "master 'local' is for Spark"),
        (
            ["p.parquet", "--id", "photo"],
            "no column 'photo' for id; its columns: id, url, hashtags, hash",
        ),
        (["p.parquet", "--exclude", "missing.txt"], "missing.txt cannot be read"),
        (["p.parquet", "--memory", "1MB"], "the memory limit is too low for DuckDB"),
        (["cut.parquet"], "cut.parquet is not a Parquet file or is truncated"),
        (["empty"], "empty has no file of posts"),
        (
            ["old.jsonl", "--quiet"],
            """none of 1 post is left; all rejected: 1 not JSON ('{"id": 1""",
        ),
        (["utf16.jsonl", "--quiet"], "utf16.jsonl is UTF-16; save it as UTF-8"),
        (["nothing.jsonl", "--quiet"], "no post is in nothing.jsonl"),
        (["p.parquet", "--keep-license", "mine"], "left; check --keep-license and --exclude"),
        (["unknown.jsonl", "--quiet"], "no hashtag of the posts is a noun of WordNet"),
        (["p.parquet", "--exclude", "pipe"], "pipe is a named pipe, not a regular file"),
        (["p.parquet", "--stoplist", "pipe"], "pipe is a named pipe, not a regular file"),
    ],
)
def test_invalid_options_and_inputs_are_reported_in_one_line(
    arguments: list[str],
    message: str,
    wordnet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_posts(tmp_path / "p.parquet", make_posts(50))
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "p.parquet").read_bytes()[:-100])
    (tmp_path / "empty").mkdir()
    lines = '{"id": 1, "hashtags": ["bear"]}\n{"id": 2, "hashtags": ["bear"]}\n'
    (tmp_path / "old.jsonl").write_bytes(lines.replace("\n", "\r").encode())
    (tmp_path / "utf16.jsonl").write_text(lines, "utf-16")
    (tmp_path / "nothing.jsonl").touch()
    (tmp_path / "unknown.jsonl").write_text(lines.replace("bear", "qwxz"))
    os.mkfifo(tmp_path / "pipe")
    assert main(["recipe", "curate", *arguments, "-o", "out", "--wordnet", str(wordnet)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_posts_without_urls_have_no_table_of_urls(wordnet: Path, tmp_path: Path) -> None:
    """Nor do they keep that of an earlier run."""
    posts = make_posts(30)
    curate([write_posts(tmp_path / "p.parquet", posts)], tmp_path / "out", wordnet=wordnet)
    assert (tmp_path / "out" / "urls.parquet").exists()
    without = [{**post, "url": None} for post in posts]
    write_posts(tmp_path / "p.parquet", without)
    assert curate([tmp_path / "p.parquet"], tmp_path / "out", wordnet=wordnet)["urls"] == 0
    assert not (tmp_path / "out" / "urls.parquet").exists()
