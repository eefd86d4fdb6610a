"""`swag-models nearest`: the order of a plain comparison, copies apart, other models refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_support import NANO, SCENES, write_images, write_tar

from swag_models.api import load_model
from swag_models.cli import main
from swag_models.errors import SwagModelsError
from swag_models.inference import Embedder, search
from swag_models.inference.embed import write_embeddings
from swag_models.inference.embeddings_file import (
    hash_rows,
    read_embeddings,
    read_embeddings_metadata,
    write_embeddings_file,
)
from swag_models.inference.search import ImageSearch
from swag_models.publish import save

pytestmark = pytest.mark.usefixtures("one_thread")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, two of them twice, and a file that is no image."""
    folder = tmp_path_factory.mktemp("search") / "photos"
    shutil.copytree(SCENES, folder)
    shutil.copy(SCENES / "cup.jpg", folder / "a copy.jpg")
    shutil.copy(SCENES / "car.jpg", folder / "another.jpg")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def file(photos: Path, one_thread: None) -> Path:
    path = photos.parent / "photos.npy"
    write_embeddings(Embedder(NANO), photos, path, progress=False)
    return path


def find(file: Path, query: Any, top_k: int = 100, **options: Any) -> search.SearchResult:
    (result,) = ImageSearch(file, **options)(query, top_k)
    return result


def rank_plainly(file: Path, query: Path, **options: Any) -> list[tuple[str, float]]:
    """All names by similarity, with NumPy in float64."""
    bank = read_embeddings(file)
    vectors = bank.vectors.double().numpy()
    (vector,) = Embedder(NANO, **options)(query).vectors.double().numpy()
    values = vectors @ vector / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vector)
    order = np.argsort(-values, kind="stable")
    return [(bank.names[index], values[index]) for index in order]


@pytest.mark.parametrize("chunk", [3, 2**16])
def test_the_order_is_that_of_a_plain_comparison(
    chunk: int, file: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "CHUNK_ROWS", chunk)
    result = find(file, SCENES / "cup.jpg")
    copies = {str(photos / "a copy.jpg"), str(photos / "cup.jpg")}
    expected = [row for row in rank_plainly(file, SCENES / "cup.jpg") if row[0] not in copies]
    assert [neighbour.name for neighbour in result.neighbours] == [name for name, _ in expected]
    values = [neighbour.similarity for neighbour in result.neighbours]
    assert values == pytest.approx([value for _, value in expected], abs=1e-6)
    assert set(result.copies) == copies
    assert find(file, SCENES / "cup.jpg", 3).neighbours == result.neighbours[:3]


def test_an_image_that_only_looks_the_same_is_no_copy(
    file: Path, photos: Path, tmp_path: Path
) -> None:
    query = tmp_path / "query.jpg"
    query.write_bytes((SCENES / "cup.jpg").read_bytes() + b"\0")  # the same pixels
    result = find(file, query)
    assert result.copies == []
    assert [neighbour.similarity for neighbour in result.neighbours[:2]] == pytest.approx([1, 1])
    with_shard = write_tar(tmp_path / "a.tar", {"cup.jpg": (SCENES / "cup.jpg").read_bytes()})
    assert find(file, with_shard).copies == []


def test_the_settings_of_the_file_are_used(photos: Path, tmp_path: Path) -> None:
    for number, options in enumerate(
        ({"image_size": 32}, {"image_size": (24, 48)}, {"fast": True}, {"dtype": "bfloat16"})
    ):
        path = tmp_path / f"{number}.parquet"
        embedder = Embedder(NANO, **options)
        write_embeddings(embedder, photos, path, progress=False)
        search = ImageSearch(path)
        assert repr(search.embedder.preprocess) == repr(embedder.preprocess)
        assert search.embedder.dtype == embedder.dtype
        assert repr(search).endswith(
            f"{number}.parquet, {len(search.names)} vectors, {embedder!r})"
        )
        best = find(path, photos / "fish.jpg")
        assert best.copies == [str(photos / "fish.jpg")]


def test_the_model_of_a_folder_is_named_by_the_user(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    folder = save(load_model(NANO, num_classes=3), tmp_path / "mine", license="mit")
    write_embeddings(Embedder(folder), photos, tmp_path / "x.npy", progress=False)
    monkeypatch.chdir(tmp_path)  # the folder has the name that the file names
    with pytest.raises(SwagModelsError, match="the model 'mine', which is not in the catalog"):
        ImageSearch("x.npy")
    assert len(find(Path("x.npy"), photos / "fish.jpg", model=folder).neighbours) == 11
    # the head does not count, but other weights do
    model = load_model(NANO)
    torch.nn.init.zeros_(model.blocks[0].attn.proj.weight)
    other = save(model, tmp_path / "other")
    with pytest.raises(SwagModelsError, match=r"weights_sha256 is .* pass the model that wrote it"):
        ImageSearch("x.npy", model=other)


def change(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda metadata: metadata.update(values)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (change(weights_sha256="0" * 64), "another model: weights_sha256"),
        (change(width=95), "cannot be read|another model: width"),
        (change(dtype="float64"), "weights_sha256|dtype"),
        (change(dtype="int8"), "dtype 'int8' is not allowed"),
        (change(preprocess="Transform(Preprocess(image_size=40, x))"), "image size: preprocess"),
        (change(preprocess="Transform(Preprocess(image_size=999999, x))"), "image_size"),
        (change(preprocess="anything"), "image size: preprocess"),
        (change(preprocess=None), "does not say which model wrote it"),
        (change(model="hf-hub:somebody/else"), "not in the catalog"),
        (change(model="/tmp"), "not in the catalog"),
        (change(model=7), "does not say which model wrote it"),
        (change(model="regnety_nano_hashtags"), "preprocess|width"),
        (lambda metadata: metadata.pop("dtype"), "does not say which model wrote it"),
    ],
)
def test_what_the_file_does_not_fit_is_refused_in_one_line(
    edit: Callable[[dict[str, Any]], None],
    reason: str,
    file: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    shutil.copy(file, tmp_path / "x.npy")
    record = json.loads(file.with_suffix(".json").read_text())
    edit(record["swag_models"])
    (tmp_path / "x.json").write_text(json.dumps(record))
    assert main(["nearest", str(tmp_path / "x.npy"), str(SCENES / "cup.jpg")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(reason, line), line
    assert len(line) < 500


@pytest.mark.parametrize("value", [np.nan, 0.25, 3e38])
def test_rows_that_were_changed_are_refused(value: float, file: Path, tmp_path: Path) -> None:
    shutil.copy(file.with_suffix(".json"), tmp_path / "x.json")
    vectors = np.load(file)
    vectors[3, 5] = value
    np.save(tmp_path / "x.npy", vectors)
    with pytest.raises(SwagModelsError, match="was changed or damaged after it was written"):
        ImageSearch(tmp_path / "x.npy")


def test_rows_that_are_not_finite_are_refused(file: Path, tmp_path: Path) -> None:
    metadata, bank = read_embeddings_metadata(file), read_embeddings(file)
    bank.vectors[3, 5] = np.nan  # as a model in float16 gives
    metadata["rows_sha256"] = hash_rows(bank.vectors.numpy(), bank.names)
    write_embeddings_file(tmp_path / "x.npy", bank.vectors.numpy(), bank.names, metadata)
    with pytest.raises(SwagModelsError, match="rows that are not finite"):
        find(tmp_path / "x.npy", SCENES / "cup.jpg")


@pytest.mark.parametrize("name", [None, 7, b"x"])
def test_names_that_are_not_text_are_refused(name: Any, file: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    metadata, bank = read_embeddings_metadata(file), read_embeddings(file)
    write_embeddings_file(tmp_path / "x.parquet", bank.vectors.numpy(), bank.names, metadata)
    table = parquet.read_table(tmp_path / "x.parquet")
    names = pyarrow.array([name] * len(table))
    parquet.write_table(table.set_column(0, "name", names), tmp_path / "x.parquet")
    with pytest.raises(SwagModelsError, match=r"its columns are name \((null|int64|binary)\), emb"):
        ImageSearch(tmp_path / "x.parquet")


def test_the_command_prints_neighbours_copies_and_what_it_cannot_read(
    file: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    broken = tmp_path / "bad.png"
    broken.write_bytes(b"no image")
    arguments = ["nearest", str(file), str(SCENES / "cup.jpg"), str(broken), "--top-k", "2"]
    assert main(arguments) == 1
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0] == str(SCENES / "cup.jpg")
    assert [len(line.split("  ")) > 1 for line in lines[1:]] == [True] * 4
    assert [line.split()[0] for line in lines[3:]] == ["copy", "copy"]
    assert "1 image could not be read when it was written" in output.err
    assert f"skipped: {broken}" in output.err
    assert main([*arguments[:3], "--json", "--top-k", "1"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["image"] == str(SCENES / "cup.jpg")
    assert len(row["neighbours"]) == 1
    assert sorted(row["copies"]) == [str(photos / "a copy.jpg"), str(photos / "cup.jpg")]


def test_a_part_of_a_run_is_said(photos: Path, tmp_path: Path, capsys: Capture) -> None:
    write_images(tmp_path / "images", 4)
    for rank in range(2):
        write_embeddings(
            Embedder(NANO),
            tmp_path / "images",
            tmp_path / "x.npy",
            rank=rank,
            world_size=2,
            progress=False,
        )
    part = tmp_path / "x-00001-of-00002.npy"
    assert main(["nearest", str(part), str(SCENES / "cup.jpg")]) == 0
    assert "has part 2 of 2 of the images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("{file} cup.jpg --top-k 0", "top_k"),
        ("{file} nothing-here/", "skipped"),
        ("missing.npy {cup}", "missing.json does not exist; swag-models embed writes it"),
        ("missing.parquet {cup}", "missing.parquet does not exist; swag-models embed writes it"),
        ("{cup} {cup}", "cup.jpg"),
        ("{file} {cup} --model vit_b17", "vit_b16"),
        ("{file} {cup} --device tpu", "device 'tpu' cannot be used here"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: str, reason: str, file: Path, capsys: Capture
) -> None:
    words = arguments.format(file=file, cup=SCENES / "cup.jpg").split()
    assert main(["nearest", *words]) in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert reason in lines[-1]
    assert "Traceback" not in "".join(lines)
