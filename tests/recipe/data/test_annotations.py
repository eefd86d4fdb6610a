"""Annotation files of each format give the same images and labels; invalid ones are rejected."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from decoding import to_bytes
from image_support import make_pixels
from loader_support import open_loader, take
from PIL import Image

from swag_models.errors import ConfigError, ImageError
from swag_models.recipe.data.annotations import open_annotations
from swag_models.recipe.data.sources import open_source

LABELS = {
    "a.png": ("cat", "dining table"),
    "deep/b.png": (),
    "c.png": ("dog",),
    "d.png": ("dining table", "dog", "cat"),
}
CLASSES = ("cat", "dining table", "dog")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of images without labels."""
    root = tmp_path / "photos"
    for number, name in enumerate(LABELS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_pixels(number, 10, 12)).save(root / name)
    return root


def write_list(separator: str) -> str:
    rows = [f'{name},7,"{separator.join(labels)}"' for name, labels in LABELS.items()]
    return "\n".join(["file_name,width,labels", *rows])


def write_flags() -> str:
    rows = [
        [name, *(f" {int(label in labels)}" for label in CLASSES)]
        for name, labels in LABELS.items()
    ]
    return "\n".join(map(",".join, [["filename", *(f" {name}" for name in CLASSES)], *rows]))


def make_rows() -> list[dict[str, Any]]:
    return [{"image": name, "labels": list(labels)} for name, labels in LABELS.items()]


def make_coco() -> dict[str, Any]:
    """COCO annotations, with ids that are neither in order nor small, and a label twice."""
    images = [{"id": 10**30 - number, "file_name": name} for number, name in enumerate(LABELS)]
    categories = [{"id": 7 * len(name), "name": name} for name in CLASSES[:2]]
    categories.append({"id": 90, "name": CLASSES[2], "supercategory": "animal"})
    ids = {category["name"]: category["id"] for category in categories}
    annotations = [
        {"id": 1, "image_id": image["id"], "category_id": ids[label], "bbox": [0, 0, 1, 1]}
        for image in images
        for label in (*LABELS[image["file_name"]], *LABELS[image["file_name"]][:1])
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


FORMATS: dict[str, Callable[[], str]] = {
    "bars.csv": lambda: write_list("|"),
    "commas.csv": lambda: write_list(", "),
    "flags.csv": write_flags,
    "rows.json": lambda: json.dumps(make_rows()),
    "rows.jsonl": lambda: "\n".join(map(json.dumps, make_rows())),
    "mapping.json": lambda: json.dumps({name: list(labels) for name, labels in LABELS.items()}),
    "coco.json": lambda: json.dumps(make_coco()),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_images_and_labels(name: str, folder: Path) -> None:
    (folder / name).write_text(FORMATS[name](), encoding="utf-8-sig")
    loader = open_loader(folder / name, batch_size=4, transform=to_bytes)
    assert (loader.class_names, loader.num_classes, loader.samples) == (CLASSES, 3, 4)
    (batch,) = take(loader, 1)
    found = {
        name: {CLASSES[label] for label in labels} for name, labels in zip(batch.ids, batch.classes)
    }
    assert found == {name: set(labels) for name, labels in LABELS.items()}
    for name, pixels in zip(batch.ids, batch.images):
        assert bytes(pixels.flatten().tolist()) == bytes(
            to_bytes(Image.open(folder / name)).flatten().tolist()
        )
    assert loader.facts["kind"] == "annotations"


def test_a_parquet_table_is_read(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(make_rows()).to_parquet(folder / "rows.parquet")
    dataset = open_annotations(folder / "rows.parquet")
    assert dict(zip(dataset.names, dataset.labels)) == {
        name: tuple(map(CLASSES.index, labels)) for name, labels in LABELS.items()
    }


@pytest.mark.parametrize(
    ("name", "value", "kind", "message"),
    [
        ("labels", "dog", {}, "has more than one column 'labels'; rename or remove"),
        ("taken", 2**30, {"type": "date32"}, "cannot be read: days=1073741824"),
        ("taken", 1, {"tz": "Mars/Olympus"}, "cannot be read: .*Mars/Olympus"),
    ],
)
def test_what_a_row_of_a_parquet_table_cannot_hold_is_one_line(
    name: str, value: Any, kind: dict[str, str], message: str, folder: Path
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    column = pyarrow.timestamp("us", **kind) if "tz" in kind else kind.get("type")
    arrays = [pyarrow.array(["a.png"]), pyarrow.array(["cat"]), pyarrow.array([value], column)]
    table = pyarrow.Table.from_arrays(arrays, names=["file_name", "labels", name])
    parquet.write_table(table, folder / "x.parquet")
    with pytest.raises(ConfigError, match=message) as caught:
        open_annotations(folder / "x.parquet")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("metadata.jsonl", "."),  # Hugging Face's imagefolder; the folder itself is given
        ("_annotations.coco.json", "."),
        ("annotations/instances_val2017.json", "val2017"),  # COCO
        ("annotations/instances_val2017.json", "images/val2017"),
        ("train.csv", "train_images"),  # Kaggle
        ("train.csv", "train"),
        ("labels.jsonl", "images"),
    ],
)
def test_images_are_found_in_the_usual_places(
    file: str, images: str, folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    (root / images).parent.mkdir(parents=True, exist_ok=True)
    folder.rename(root / images) if images != "." else folder.rename(root)
    (root / "deep").rmdir() if (root / "deep").is_dir() and not any(
        (root / "deep").iterdir()
    ) else 0
    kind = {".csv": "bars.csv", ".jsonl": "rows.jsonl", ".json": "coco.json"}[Path(file).suffix]
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(FORMATS[kind]())
    dataset = open_annotations(root / file)
    assert dataset.root.samefile(root / images)
    assert dataset.read(0).size == (12, 10)


def test_a_folder_with_a_metadata_file_needs_no_file_name(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,label\na.png,cat\nc.png,\n")
    with pytest.raises(
        ConfigError, match=r"has sub-folders and metadata.csv; give .*metadata.csv to read"
    ):
        open_source(folder)
    (folder / "deep" / "b.png").unlink()
    (folder / "deep").rmdir()
    source = open_source(folder)
    assert (source.names, source.labels) == (["a.png", "c.png"], [(0,), ()])  # type: ignore[union-attr]
    (folder / "metadata.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=r"has metadata\.csv and metadata\.jsonl; give one"):
        open_source(folder)


def test_names_without_a_suffix_repeated_rows_and_spaces(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Kaggle's layouts; numbers are sorted as numbers."""
    (folder / "train.csv").write_text("Id,Target,fold\na,16 2,0\nc,2,1\n./c.png,10,1\ngone,,2\n")
    with caplog.at_level(logging.WARNING):
        dataset = open_annotations(folder / "train.csv")
    assert dataset.class_names == ("2", "10", "16")
    assert dict(zip(dataset.names, dataset.labels)) == {
        "a.png": (2, 0),
        "c.png": (0, 1),
        "gone": (),
    }
    (message,) = caplog.messages
    for part in (
        "labels in column Target are separated by spaces",
        "columns that are not read: fold",
        "1 repeated file name, with merged labels",
        "missing: 1 of 3 images, such as gone",
    ):
        assert part in message
    with pytest.raises(ImageError, match="gone"):
        dataset.read(2)
    assert pickle.loads(pickle.dumps(dataset)).read(0).size == (12, 10)


def test_the_hash_depends_on_labels_classes_and_images(folder: Path) -> None:
    path, hashes = folder / "x.json", set()
    for content in ({"a.png": ["cat"]}, {"a.png": ["dog"]}, {"a.png": ["dog"], "c.png": []}):
        path.write_text(json.dumps(content))
        hashes.add(open_annotations(path).sha256)
    hashes.add(open_annotations(path, ["cat", "dog"]).sha256)
    (folder / "c.png").write_bytes(b"other")
    hashes.add(open_annotations(path).sha256)
    assert len(hashes) == 5


def test_labels_are_numbered_by_the_classes_of_a_model(folder: Path) -> None:
    (folder / "x.json").write_text(FORMATS["mapping.json"]())
    head = ["emu", "dog", "dining table", "cat"]
    assert open_annotations(folder / "x.json", head).labels[0] == (3, 2)
    with pytest.raises(ConfigError, match=r"x\.json has classes that the model does not have: dog"):
        open_annotations(folder / "x.json", ["cat", "dining table"])


def coco(**changes: Any) -> str:
    return json.dumps({**make_coco(), **changes})


IMAGES = [{"id": 1, "file_name": "a.png"}]
CATEGORIES = [{"id": 1, "name": "cat"}]
INVALID = [
    ("x.csv", "", "has no column of file names; its columns: none; name it file_name"),
    ("x.csv", "name,labels\na.png,cat\n", "has no column of file names; its columns: name, labels"),
    ("x.csv", "file_name\na.png\n", "has no column of labels; name it labels, or give a column"),
    ("x.csv", "file_name,labels\na.png,\n", "has no label; give at least one image a label"),
    ("x.csv", "file_name,labels\na.png,cat,dog\n", "row 1 has more cells than the header; quote"),
    ("x.csv", "file_name,cat,cat\na.png,1,0\n", "has more than one column 'cat'; rename"),
    ("x.csv", "file_name,cat\na.png,nan\nb,-1\n", "row 1 has 'nan' in column cat; .*; 1 more inv"),
    ("x.csv", "file_name,cat,dog\na.png,1\n", "row 1 has None in column dog; allowed: 0 or 1"),
    ("x.csv", "file_name,labels\na.png,nan\n", "row 1 has label 'nan'; allowed: text, whole"),
    ("x.csv", "file_name,labels\n,cat\n", "row 1 has file name in column file_name ''; allowed"),
    ("x.csv", "file_name,labels\n../a.png,cat\n", r"has the file name '\.\./a\.png'; allowed: rel"),
    ("x.csv", "file_name,labels\n/etc/a.png,cat\n", "has the file name '/etc/a.png'; allowed: rel"),
    ("x.csv", "file_name,labels\nb/../../a,cat\nC:\\a,cat\n", "allowed: relative.*; 1 more inv"),
    ("x.csv", "file_name,labels\nhttp://a/b.png,cat\n", "has the file name 'http://a/b.png'"),
    (
        "x.csv",
        f"file_name,labels\n{'a' * 300},cat\n",
        "has the file name 'aaa.*; allowed: relative",
    ),
    ("x.csv", "file_name,labels\nz.png,cat\n", "lists 'z.png', but neither this nor the next"),
    ("x.csv", f'file_name,labels\na.png,"{"x" * 200_000}"\n', "cannot be read: field larger than"),
    ("x.csv", b"file_name,labels\na.png,\xff\n", "cannot be read: 'utf-8' codec can't decode"),
    (
        "x.csv",
        'file_name,labels\na.png,"cat\nc.png,dog\n',
        "cannot be read: unexpected end of data",
    ),
    ("x.csv", "file_name,labels\na.png,cat\nc.png\n", "row 2 ends before column labels; leave"),
    ("x.CSV", "file_name,labels\na.png,cat\n", r"invalid annotations .*x\.CSV: allowed: \.csv"),
    ("x.csv", "file_name, \na.png,1\n", "has no column of labels; name it labels"),
    ("x.json", "{", "cannot be read: Expecting property name"),
    ("x.json", "[" * 100_000, "cannot be read: it is nested too deeply"),
    ("x.json", "[1]", "is not a list of annotations; allowed: a list of objects with file_name"),
    ("x.json", '"a"', "is not a list of annotations"),
    ("x.json", "[]", "has no column of file names"),
    ("x.json", "{}", "has no label"),
    ("x.json", '{"a.png": ["cat"], "a.png": []}', "cannot be read: a.png occurs twice"),
    ("x.json", '{"a.png": [NaN], "b": 1.5}', "row 1 has label nan; .*; 1 more invalid"),
    ("x.json", '{"a.png": [["cat"]]}', r"row 1 has label \['cat'\]; allowed: text"),
    ("x.json", '{"a.png": {"cat": 1}}', "row 1 has label of type dict; allowed: text"),
    ("x.json", '{"a.png": [true]}', "row 1 has label True; allowed"),
    ("x.json", '{"a.png": ["  "]}', "row 1 has label '  '; allowed"),
    ("x.json", '{"\\ud800.png": ["cat"]}', r"has the file name '\\ud800.png'; allowed"),
    ("x.json", '{"a\\u0000.png": ["cat"]}', r"has the file name 'a\\x00.png'; allowed"),
    ("x.json", f'{{"a.png": {"9" * 5000}}}', "cannot be read: Exceeds the limit"),
    (
        "x.jsonl",
        '{"file_name": "a.png", "labels": ["cat"]}\n3',
        "line 2 of .* is not a JSON object",
    ),
    (
        "x.jsonl",
        '{"file_name": 1.5, "labels": ["cat"]}',
        "row 1 has file name in column .* 1.5; al",
    ),
    (
        "x.jsonl",
        '{"file_name": "a.png", "labels": ["cat"], "labels": ["dog"]}',
        "cannot be read: labels occurs twice",
    ),
    ("x.parquet", "no", "cannot be read: "),
    ("x.json", '{"images": [], "annotations": []}', "has no list of objects 'categories'"),
    ("x.json", coco(annotations={}), "has no list of objects 'annotations'"),
    ("x.json", coco(images=[3]), "has no list of objects 'images'"),
    ("x.json", coco(images=[], annotations=[]), "lists no image"),
    ("x.json", coco(images=IMAGES * 2), "image 2 has the id 1 of an earlier one"),
    ("x.json", coco(images=[{"id": 1}]), "image 1 has file_name None; allowed"),
    ("x.json", coco(images=[{"id": [], "file_name": "a.png"}]), r"image 1 has id \[\]; allowed"),
    ("x.json", coco(categories=CATEGORIES * 2), "category 2 has the id 1 of an earlier"),
    (
        "x.json",
        coco(categories=[*CATEGORIES, {"id": 2, "name": "cat"}], annotations=[]),
        "has more than one category 'cat'; rename all but one",
    ),
    ("x.json", coco(categories=[], annotations=[]), "has no category; give at least one"),
    (
        "x.json",
        coco(images=IMAGES, annotations=[{"image_id": 1, "category_id": 5}, {"image_id": 1}]),
        "annotation 1 has category_id 5, which is not the id of a category; 1 more invalid",
    ),
    (
        "x.json",
        coco(images=IMAGES, categories=CATEGORIES, annotations=[{"category_id": 1}]),
        "annotation 1 has image_id None; allowed",
    ),
    (
        "x.json",
        coco(images=[{"id": 1, "file_name": "../../etc/passwd"}], annotations=[]),
        "has the file name '../../etc/passwd'; allowed: relative paths below",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), INVALID)
def test_an_invalid_file_is_one_line(
    name: str, content: str | bytes, message: str, folder: Path
) -> None:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message) as caught:
        open_annotations(path)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 500
    assert name in text


def test_annotations_of_images_that_are_not_listed_are_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotations = [{"image_id": 1, "category_id": 1}, {"image_id": 8, "category_id": 1}]
    path = folder / "x.json"
    path.write_text(coco(images=IMAGES, categories=CATEGORIES, annotations=annotations))
    assert open_annotations(path).labels == [(0,)]
    assert caplog.messages == ["x.json: 1 annotation of images that are not listed"]


def test_missing_files_and_pipes_are_rejected(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.csv does not exist; allowed: packed shards"):
        open_source(folder / "gone.csv")
    os.mkfifo(folder / "pipe.json")
    with pytest.raises(ConfigError, match=r"pipe\.json is a named pipe, not a regular file"):
        open_source(folder / "pipe.json")
