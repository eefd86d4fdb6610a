"""A curation resumes after a kill and repeats only what changed; its output is reproducible."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curation_support import make_posts, write_posts

from swag_models.errors import ConfigError, OutputError
from swag_models.hub.download import hash_file
from swag_models.recipe import hashtags, phrases
from swag_models.recipe.curation import pipeline
from swag_models.recipe.curation.columns import Columns
from swag_models.recipe.curation.curate import Curation, curate
from swag_models.recipe.curation.sampling import Sampling
from swag_models.resumable import WorkFolder

OUTPUTS = (
    "labels.parquet",
    "urls.parquet",
    "vocabulary.parquet",
    "manifest.json",
    "report.md",
    "rejects.jsonl",
)
CURATE = """
import sys
from swag_models.recipe.curation.curate import curate
curate([sys.argv[1]], sys.argv[2], wordnet=sys.argv[3], progress=False)
"""


def test_a_rerun_skips_finished_steps_and_repeats_those_with_changed_options(
    wordnet: Path, tmp_path: Path
) -> None:
    posts, out = write_posts(tmp_path / "p.parquet", make_posts(200)), tmp_path / "out"
    curate([posts], out, wordnet=wordnet, progress=False)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    os.utime(posts)  # a new time, the same bytes
    first = curate([posts], out, wordnet=wordnet, progress=False)
    changed = {path.name for path, then in times.items() if path.stat().st_mtime_ns != then}
    assert changed <= {"hashes.json", ".lock"}
    second = curate(
        [posts], out, Curation(sampling=Sampling("natural")), wordnet=wordnet, progress=False
    )
    changed = {
        path.name
        for path, then in times.items()
        if path.exists() and path.stat().st_mtime_ns != then
    }
    assert "labels.parquet" in changed
    assert not changed & {  # the steps before the labels
        "posts.json",
        "hashtags.json",
        "images.json",
        "classes.json",
        "matches.parquet",
    }
    assert first["classes"] == second["classes"]
    assert first["labels"]["samples"] == pytest.approx(second["labels"]["samples"], rel=1e-3)


@pytest.mark.parametrize(
    ("source", "changed", "first"),
    [
        ("captions", "load_not_nouns", "captions"),
        ("captions", "load_imagenet", "hashtags"),
        ("hashtags", "hash_senses", "hashtags"),
    ],
)
def test_a_changed_list_of_the_library_repeats_the_steps_that_use_it(
    wordnet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    changed: str,
    first: str,
) -> None:
    posts, out = tmp_path / "p.jsonl", tmp_path / "out"
    posts.write_text('{"id": 1, "caption": "a bear", "tags": ["bear"]}\n')
    columns = Columns(source=source)
    curate([posts], out, columns=columns, wordnet=wordnet, progress=False)
    times = {path.stem: path.stat().st_mtime_ns for path in (out / "steps").glob("*.json")}
    value: Any = "0" if changed.endswith("senses") else ["zebra"]
    for module in (hashtags, phrases):
        if hasattr(module, changed):
            monkeypatch.setattr(module, changed, lambda: value)
    curate([posts], out, columns=columns, wordnet=wordnet, progress=False)
    repeated = {
        record.stem
        for record in (out / "steps").glob("*.json")
        if record.stat().st_mtime_ns != times[record.stem]
    }
    assert first in repeated
    assert ("captions" in repeated) == (first == "captions")
    assert "posts" not in repeated


def test_an_unwritable_folder_is_reported_in_one_line(wordnet: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "report.md").mkdir(parents=True)
    with pytest.raises(
        OutputError,
        match=r"out cannot be written: .*; finished work is kept: rerun the same command to resume",
    ):
        curate(
            [write_posts(tmp_path / "p.parquet", make_posts(50))],
            tmp_path / "out",
            wordnet=wordnet,
            progress=False,
        )


def test_the_same_inputs_give_the_same_bytes(wordnet: Path, tmp_path: Path) -> None:
    posts = write_posts(tmp_path / "p.parquet", make_posts(300))
    for name, threads in (("a", 1), ("b", 2)):
        curate([posts], tmp_path / name, wordnet=wordnet, threads=threads, progress=False)
    names = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*"))]
    for name in (
        name for name in names if "steps" not in name.parts and (tmp_path / "a" / name).is_file()
    ):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(wordnet: Path, tmp_path: Path) -> None:
    posts = write_posts(tmp_path / "p.parquet", make_posts(3000))
    command = [sys.executable, "-c", CURATE, str(posts)]
    subprocess.run([*command, tmp_path / "whole", wordnet], check=True)
    generator, kills = random.Random(0), 0
    for _ in range(40):
        process = subprocess.Popen([*command, tmp_path / "killed", wordnet])
        steps = tmp_path / "killed" / "steps"
        done = len(list(steps.glob("*.json")))  # killed after two more steps
        while process.poll() is None and len(list(steps.glob("*.json"))) <= done + 1:
            time.sleep(0.005)
        time.sleep(generator.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
    else:
        pytest.fail("the curation was never finished")
    assert kills >= 2
    for name in OUTPUTS:
        assert (tmp_path / "whole" / name).read_bytes() == (
            tmp_path / "killed" / name
        ).read_bytes(), name
    assert not [path for path in (tmp_path / "killed").iterdir() if path.name.endswith(".tmp")]


@pytest.mark.slow
def test_more_posts_than_fit_in_memory(wordnet: Path, tmp_path: Path) -> None:
    words = pa.array(["".join(random.Random(n).choices("abcdefghij", k=80)) for n in range(20_000)])
    ids = pa.array([f"{n:012}" for n in range(300_000)])
    urls = pa.array([f"https://photos.example/{n:090}.jpg" for n in range(300_000)])
    tags = pa.array(
        [[*("bear", "mouse", "crane")[: n % 4], words[n % 20_000].as_py()] for n in range(300_000)]
    )
    pq.write_table(pa.table({"id": ids, "url": urls, "hashtags": tags}), tmp_path / "p.parquet")
    assert urls.nbytes + ids.nbytes > 30e6
    manifest = curate(
        [tmp_path / "p.parquet"],
        tmp_path / "out",
        wordnet=wordnet,
        memory="80MB",
        threads=1,
        progress=False,
    )
    assert manifest["posts"]["kept"] == 300_000
    assert manifest["labels"]["images"] == 225_000


def test_two_processes_cannot_write_the_same_folder(wordnet: Path, tmp_path: Path) -> None:
    write_posts(tmp_path / "p.parquet", make_posts(10))
    with (
        WorkFolder(tmp_path / "out" / "steps"),
        pytest.raises(ConfigError, match=r"another process is writing .*/out;"),
    ):
        curate([tmp_path / "p.parquet"], tmp_path / "out", wordnet=wordnet, progress=False)


def test_hashes_of_the_posts_outlive_a_failed_run(
    wordnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashing terabytes takes hours, so it is not repeated; a changed file is hashed again."""
    hashed = list[str]()

    def hash_and_count(path: Path) -> str:
        hashed.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(pipeline, "hash_file", hash_and_count)
    texts = {"a.jsonl": ("a", "bear"), "b.jsonl": ("b", "mouse")}
    for name, (key, tag) in texts.items():
        (tmp_path / name).write_text(json.dumps({"id": key, "hashtags": [tag]}) + "\n")
    inputs, out = [tmp_path / name for name in texts], tmp_path / "out"
    with pytest.raises(ConfigError):
        curate(inputs, out, columns=Columns(hashtags="gone"), wordnet=wordnet, progress=False)
    assert (out / "steps" / "hashes.json").exists()
    curate(inputs, out, wordnet=wordnet, progress=False)
    assert sorted(hashed) == sorted(texts)
    inputs[1].write_text(json.dumps({"id": "b", "hashtags": ["crane"]}) + "\n")
    assert curate(inputs, out, wordnet=wordnet, progress=False)["posts"]["kept"] == 2
    assert hashed[2:] == ["b.jsonl"]
    rows = pq.read_table(out / "vocabulary.parquet").to_pylist()
    assert {row["hashtag"] for row in rows} == {"bear", "crane"}
