"""The folder and the published model of a run; invalid runs are rejected with one line."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as torch_dist
from filelock import FileLock
from ranks import run_ranks
from runs import make_arguments, make_digits
from shards_support import make_shards
from tiny import load_tiny

from swag_models import load_model
from swag_models.catalog.swag import NC, NC_URL
from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.publish import save
from swag_models.recipe.config_overrides import override
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.classes import Classes
from swag_models.recipe.training.distributed import DistContext
from swag_models.recipe.training.model import find_start_spec, make_model
from swag_models.recipe.training.run_dir import open_run_dir

pytestmark = pytest.mark.usefixtures("one_thread")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with the vocabulary of their ten classes, in no order."""
    folder = make_shards(tmp_path_factory.mktemp("packed"), 48, 4)
    rows = [
        {"class": n, "synset": f"n{n:08d}", "hashtag": f"tag{n}", "images": 9}
        for n in (3, 1, 0, 2, *range(9, 3, -1))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "vocabulary.parquet")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits") / "train", 30)


def test_validation_shards_of_another_vocabulary_are_rejected(
    packed: Path, tmp_path: Path, capsys: Capture
) -> None:
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    vocabulary = pq.read_table(shards / "vocabulary.parquet").to_pylist()
    others = [
        {**row, "synset": f"n{row['class'] ^ 1:08d}"} for row in vocabulary
    ]  # as many, of the same names
    pq.write_table(pa.Table.from_pylist(others), shards / "vocabulary.parquet")
    assert (
        main(
            make_arguments(
                packed, tmp_path / "run", "steps=2", options=["--val", shards / "manifest.json"]
            )
        )
        == 2
    )
    assert re.fullmatch(
        r".*/vocabulary.parquet is not the vocabulary of the model; .*\n", capsys.readouterr().err
    )
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_model_of_hashtags_is_published_with_its_recipe(
    packed: Path, tmp_path: Path, capsys: Capture
) -> None:
    options = ["--name", "tagger", "--license", "mit", "--val", str(packed)]
    assert (
        main(
            make_arguments(packed, tmp_path / "run", "steps=2", "engine.buffer=20", options=options)
        )
        == 0
    )
    out, err = capsys.readouterr()
    folder = tmp_path / "run" / "model"
    assert (out, err) == (f"{folder}\n", "")
    spec = load_model(folder).spec
    assert spec
    assert (spec.name, spec.license, spec.arch) == ("tagger", "mit", "vit_nano")
    assert spec.classes == tuple(f"tag{n}" for n in range(10))
    assert spec.synsets == tuple(f"n{n:08d}" for n in range(10))
    assert spec.metrics
    assert (folder / "vocabulary.parquet").read_bytes() == (
        packed / "vocabulary.parquet"
    ).read_bytes()
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["run"] == json.loads((tmp_path / "run" / "run.json").read_text())["run"]
    assert (recipe["preset"], recipe["data"]["kind"], recipe["data"]["classes"]) == (
        "vit_nano_hashtags",
        "shards",
        10,
    )
    card = (folder / "README.md").read_text()
    assert "| preset | vit_nano_hashtags |" in card
    assert f"SHA-256 `{recipe['data']['sha256']}`" in card
    assert "license: mit" in card
    for name in (
        "recipe.json",
        "vocabulary.parquet",
    ):  # as a kill between the model and these leaves it
        (folder / name).unlink()
    assert (
        main(
            make_arguments(packed, tmp_path / "run", "steps=2", "engine.buffer=20", options=options)
        )
        == 0
    )
    assert capsys.readouterr().out == f"{folder}\n"
    assert (folder / "vocabulary.parquet").is_file()
    assert json.loads((folder / "recipe.json").read_text()) == recipe


def test_the_licence_of_the_initial_weights_is_kept(
    images: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = override(get_preset("vit_nano_hashtags").run, ["image_size=32"])
    model, spec = make_model(run, Classes(3, ("a", "b", "c")))
    model.spec = spec
    init = save(model, tmp_path / "nc", license=NC, license_url=NC_URL)
    assert main(make_arguments(images, tmp_path / "run", "steps=1", options=["--init", init])) == 0
    made = load_model(tmp_path / "run" / "model").spec
    assert made
    assert (made.license, made.license_url) == (NC, NC_URL)
    assert f"| initial weights | {init} |" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_class_names_do_not_come_from_the_initial_model(tmp_path: Path) -> None:
    run = override(get_preset("vit_nano_hashtags").run, ["image_size=32"])
    model, spec = make_model(run, Classes(3, ("a", "b", "c")))
    model.spec = spec
    init = save(model, tmp_path / "named", license="mit")
    _, other = make_model(override(run, [f"init={init}"]), Classes(3))
    assert (other.classes, other.synsets, other.num_classes) == (None, None, 3)
    assert find_start_spec(run).license == "unknown"


def test_invalid_runs_are_rejected_with_one_line(
    images: Path, tmp_path: Path, capsys: Capture
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(images, tmp_path / "val" / "train")
    (tmp_path / "file").touch()
    shutil.copytree(images, tmp_path / "lines")
    next((tmp_path / "lines").iterdir()).rename(tmp_path / "lines" / "a\nb")
    tiny_model = save(load_tiny(), tmp_path / "tiny", license="mit")
    for arguments, code, message in (
        (make_arguments(tmp_path / "none", bare), 2, "none does not exist; allowed: packed shards"),
        (make_arguments(images, bare, "batch_size=0"), 2, "batch_size is 0; allowed: 1 or more"),
        (make_arguments(images, bare, preset="vit_nan"), 2, "unknown preset 'vit_nan'"),
        (make_arguments(images, tmp_path / "file"), 2, "--output must be a folder; "),
        (
            make_arguments(images, bare, options=["--init", tiny_model]),
            2,
            "but the run has arch=vit_nano; change one of them",
        ),
        (
            make_arguments(images, bare, options=["--val", tmp_path / "val"]),
            2,
            "has classes that the model does not have: train",
        ),
        (
            make_arguments(tmp_path / "lines", bare),
            2,
            "lines: 'a\\nb' has control characters; use one line of printable text",
        ),
        (
            make_arguments(images, bare, options=["--name", "x\x1b[31m"]),
            2,
            "'x\\x1b[31m' has control characters; use one line of printable text",
        ),
        (
            make_arguments(images, bare, options=["--description", "one\ntwo"]),
            2,
            "'one\\ntwo' has control characters; use one line of printable text",
        ),
        (
            make_arguments(images, bare, "image_size=33"),
            2,
            "image size 33x33 is not a multiple of the patch size",
        ),
    ):
        assert main(arguments) == code, message
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert len(err.splitlines()) == 1
    with FileLock(bare / ".lock"):
        assert main(make_arguments(images, bare)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r".*another process is writing .*bare; wait for it, or choose another output", line
    )


def test_all_ranks_reject_a_folder_that_one_does_not_see(tmp_path: Path) -> None:
    run_ranks(2, open_apart, tmp_path)


def open_apart(root: Path) -> None:
    """As on two nodes with separate disks; then on a disk that they share."""
    dist = DistContext(torch_dist.get_rank(), 2, torch.device("cpu"))
    node = root / f"node {dist.rank}"
    (node / "runs").mkdir(parents=True)
    os.chdir(node)
    message = "rank 1 does not see runs; choose a folder that all nodes share"
    with pytest.raises(ConfigError, match=message), open_run_dir(Path("runs"), dist):
        pass
    with open_run_dir(Path("../shared"), dist):
        pass
    assert all(
        path.name == ".lock" for folder in ("runs", "../shared") for path in Path(folder).iterdir()
    )
