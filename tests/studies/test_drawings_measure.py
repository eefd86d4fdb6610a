"""Measures of held-out drawings, against what is counted by hand."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from studies.drawings.measure import (
    Outputs,
    format_measures,
    main,
    measure_keywords,
    measure_neighbours,
    run_gallery,
)
from studies.drawings.names import list_things, read_emoji, write_names
from studies.scenes.gallery import WORDNET
from swag_models.errors import ConfigError
from swag_models.recipe.classes.wordnet_mapping import Target
from swag_models.recipe.evaluation.models import open_evaluated_model
from swag_models.recipe.wordnet import WordNet

SYNSETS = [f"n0000000{number}" for number in range(7)]


def test_keywords_are_found_by_synset() -> None:
    logits = torch.eye(7)[[0, 1, 2]] + torch.arange(7, 0, -1) / 10
    outputs = Outputs(["a", "b", "c", "d"], torch.cat([logits, logits[:1]]), np.ones((4, 2)))
    keywords = {"a": [SYNSETS[0]], "b": [SYNSETS[0]], "c": [SYNSETS[6]], "d": ["n99999999"]}
    result = measure_keywords(SYNSETS, outputs, keywords)
    assert result["keyword_top1"]["value"] == pytest.approx(100 / 3)
    assert result["keyword_top5"]["value"] == pytest.approx(200 / 3)
    assert result["keyword_top1"]["count"] == 3
    assert result["without_keywords"] == 1
    with pytest.raises(ConfigError, match="no image has a keyword"):
        measure_keywords(SYNSETS, outputs, {})
    assert "most probable class is a keyword: 33.3% (" in format_measures(result)


def test_neighbours_are_of_the_same_emoji() -> None:
    angles = np.linspace(0, 1.5, 12)
    features = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    gallery = Outputs([f"g{n}" for n in range(12)], torch.zeros(12, 1), features)
    shown = {"g0": "A", "g1": "B", "g11": "A", "g10": "C"}  # the others are clip art
    queries = Outputs(["q0", "q1", "q2", "q3"], torch.zeros(4, 1), features[[0, 0, 11, 5]])
    emoji = {"q0": "A", "q1": "C", "q2": "C", "q3": "D"}
    result = measure_neighbours(queries, emoji, gallery, shown)
    assert result["neighbours_top5"]["value"] == pytest.approx(200 / 3)  # q1 is far from C
    assert (result["neighbours_top5"]["count"], result["without_other_artist"]) == (3, 1)


def test_things_are_emoji_whose_name_is_a_noun(tmp_path: Path) -> None:
    posts = [
        {"emoji": "1", "caption": "owl", "path": "images/1.png"},
        {"emoji": "2", "caption": "owls", "path": "images/2.png"},
        {"emoji": "3", "caption": "red owl", "path": "images/3.png"},
        {"emoji": "4", "caption": "nonsense", "path": "images/4.png"},
        {"emoji": None, "caption": "owl", "path": "images/5.png"},
    ]
    things = list_things(posts, WordNet.load(WORDNET))
    assert things.keys() == {"1", "2"}
    assert things["1"] == things["2"] == Target("owl", things["1"].synsets)
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in posts))
    path = write_names(tmp_path, things)
    assert json.loads(path.read_text()) == {"images/1.png": ["owl"], "images/2.png": ["owl"]}
    with pytest.raises(ConfigError, match="no emoji of"):
        write_names(tmp_path, {"9": things["1"]})


def test_measurements_at_the_same_time_write_files_of_their_own(tmp_path: Path) -> None:
    posts = [{"emoji": str(n), "path": f"images/{n}.png"} for n in range(300)]
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in posts))
    models = [  # their classes, and therefore the things that they can name
        {str(n): Target(f"{name} {n}", ()) for n in range(300)} for name in ("a", "b", "a")
    ]
    with ThreadPoolExecutor(len(models)) as pool:
        paths = list(pool.map(lambda things: write_names(tmp_path, things), models * 20))
    for path, things in zip(paths, models * 20, strict=True):
        labels = json.loads(path.read_text())
        assert labels == {f"images/{n}.png": [things[str(n)].name] for n in range(300)}
    assert len(set(paths)) == 2
    assert sorted(tmp_path.iterdir()) == sorted({*paths, tmp_path / "posts.jsonl"})


def test_near_copies_are_no_neighbours(tmp_path: Path) -> None:
    rows = [{"id": name, "emoji": emoji} for name, emoji in (("a", "A"), ("b", "B"), ("c", None))]
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_emoji(tmp_path) == {"a": "A", "b": "B"}
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "excluded.txt").write_text("b\n")
    assert read_emoji(tmp_path) == {"a": "A"}
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "b.png")
    outputs = run_gallery(open_evaluated_model("vit_nano_hashtags"), tmp_path, progress=False)
    assert outputs.ids == ["a"]
    assert (len(outputs.logits), len(outputs.features)) == (1, 1)
    (tmp_path / "posts.jsonl").write_text('{"id": "a"')
    with pytest.raises(ConfigError, match="is damaged; delete it"):
        read_emoji(tmp_path)


def test_a_folder_without_drawings_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["regnety_nano_hashtags", str(tmp_path)]) == 2
    assert (
        "has no twemoji/labels.parquet; run python -m studies.drawings" in capsys.readouterr().err
    )
