"""A hashtag without a noun is a class from the posts to the published model and its evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from runs import SETTINGS
from wordnet_support import write_wordnet

from swag_models import get_spec
from swag_models.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")
# thing -> hashtags of its posts
TAGS = {
    "sign": ["RoadSign", "roadsigns", "road_sign"],
    "bear": ["Bear", "bears", "beast"],
    "kanji": ["kanji"],
}


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.mark.slow
def test_an_own_class_works_the_whole_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wordnet = write_wordnet(tmp_path / "wn" / "dict")
    monkeypatch.setenv("WNHOME", str(wordnet.parent))
    rng, posts = np.random.default_rng(0), []
    for number in range(18):
        thing = list(TAGS)[number % 3]
        name = f"{number:02}"
        for folder in ("images", f"test/{thing}"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (20, 20, 3), "uint8")
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
        tags = TAGS[thing][number % len(TAGS[thing]) :][:2]
        posts.append({"id": name, "tags": tags, "club": "ab"[number % 2]})
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(post) + "\n" for post in posts))
    (tmp_path / "test" / "sign").rename(tmp_path / "test" / "ROAD-SIGNS")

    out, shards, model = tmp_path / "curated", tmp_path / "shards", tmp_path / "run" / "model"
    run("recipe", "curate", tmp_path / "posts.jsonl", "-o", out, "--own-classes", 2, "--quiet")
    rows = pq.read_table(out / "vocabulary.parquet").to_pylist()
    assert {row["synset"] for row in rows} >= {"tag:roadsign", "tag:kanji", "n02131653"}
    run("recipe", "pack", "--labels", out / "labels.parquet", "--images", tmp_path / "images",
        "-o", shards, "--quiet")  # fmt: skip
    settings = [part for item in (*SETTINGS, "steps=2") for part in ("--set", item)]
    run("recipe", "train", "vit_nano_hashtags", "--data", shards, "-o", model.parent, *settings,
        "--license", "mit", "--quiet")  # fmt: skip
    spec = get_spec(model)
    assert spec.classes is not None
    assert spec.synsets is not None
    assert dict(zip(spec.synsets, spec.classes, strict=True))["tag:kanji"] == "kanji"
    assert "kanji" in (model / "README.md").read_text()
    capsys.readouterr()

    data = ["--data", tmp_path / "test", "--quiet"]
    run("recipe", "evaluate", model, *data, "-o", tmp_path / "results")
    (table,) = (tmp_path / "results").glob("*.parquet")
    labels = {name for row in pq.read_table(table).to_pylist() for name in row["label_names"]}
    assert {"kanji", "roadsign"} < labels
    capsys.readouterr()
    # folders are targets: a class of the model may be no noun
    for mapping in ("related", "wup"):
        run("recipe", "zeroshot", model, *data, "--mapping", mapping, "--no-platt", "--json")
        (result,) = json.loads(capsys.readouterr().out)
        assert result["targets"] == ["ROAD-SIGNS", "bear", "kanji"]
        assert result["unreached"] == []
    (tmp_path / "targets.txt").write_text("sign tag:roadsign\nbear\nkanji\n")
    targets = ["--targets", tmp_path / "targets.txt", "--skip-unmatched", "--no-platt"]
    run("recipe", "zeroshot", model, *data, *targets, "--json")
    (result,) = json.loads(capsys.readouterr().out)
    assert result["images"] == 12  # no folder is called sign

    for post in posts:
        post["path"] = f"images/{post['id']}.png"
    (tmp_path / "groups.jsonl").write_text("".join(json.dumps(post) + "\n" for post in posts))
    run("recipe", "associations", model, "--groups", tmp_path / "groups.jsonl", "--group-column",
        "club", "--min-group", 5, "--top-k", 2, "-o", tmp_path / "bias", "--quiet")  # fmt: skip
    run("classify", tmp_path / "images" / "00.png", "--model", model, "--top-k", 4)
    assert "kanji" in capsys.readouterr().out
