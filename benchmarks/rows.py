"""The rows of the table: every benchmark that has a peer."""

import functools

from inference_ways import (
    MERGED,
    prepare_decode,
    prepare_eager,
    prepare_fast,
    prepare_load,
    prepare_merged,
    prepare_onnx,
    prepare_startup,
)
from recipe_ways import (
    prepare_curate,
    prepare_embed,
    prepare_feed,
    prepare_logistic,
    prepare_loop,
    prepare_loss,
    prepare_neighbours,
    prepare_reader,
    prepare_step,
)
from row import Row

ARCHES = ("vit_b16", "regnety_16gf")
SIZES = ((4000, 3000), (1920, 1280), (500, 375))  # of JPEGs, in pixels


def list_inference_rows(arch: str, batch: int) -> list[Row]:
    images = "1 image" if batch == 1 else f"{batch} images"
    work = f"{images} of 224 px"
    return [
        Row(
            f"{arch}, batch {batch}, eager",
            "Inference, eager float32",
            work,
            "swag_models",
            functools.partial(prepare_eager, arch=arch),
            (batch, batch),
            "images",
        ),
        Row(
            f"{arch}, batch {batch}, fast",
            "Inference, fastest setting",
            work,
            "swag_models, fast",
            functools.partial(prepare_fast, arch=arch),
            (batch, batch),
            "images",
        ),
        Row(
            f"{arch}, batch {batch}, ONNX",
            "Exported models",
            f"{work}, float32",
            "swag_models, ONNX",
            functools.partial(prepare_onnx, arch=arch),
            (batch, batch),
            "images",
        ),
    ]


def list_merged_rows() -> list[Row]:
    return [
        Row(
            f"vit_l16 merged, {dtype}{', compiled' if compiled else ''}",
            "Inference, token merging",
            f"1 image of 512 px, {dtype}{', compiled' if compiled else ''}",
            f"swag_models, merge_tokens={MERGED}",
            functools.partial(prepare_merged, dtype=dtype, compiled=compiled),
            unit="images",
            rounds=9,
        )
        for dtype, compiled in (("float32", False), ("bfloat16", False), ("bfloat16", True))
    ]


LOADING = "Loading and start-up"
READING = "Reading images"
TRAINING = "Training"

ALL = [
    *(row for arch in ARCHES for batch in (1, 8) for row in list_inference_rows(arch, batch)),
    *list_merged_rows(),
    Row(
        "load",
        LOADING,
        "from a file of vit_l16 to a model",
        "swag_models, swag layout",
        functools.partial(prepare_load, key="seconds"),
        rounds=9,
    ),
    Row(
        "load to first output",
        LOADING,
        "from a file of vit_l16 to its first output",
        "swag_models, swag layout",
        functools.partial(prepare_load, key="first"),
        rounds=9,
    ),
    Row(
        "list models",
        LOADING,
        "a new process that lists the models",
        "swag_models",
        prepare_startup,
    ),
    *(
        Row(
            f"decode {width} x {height}",
            READING,
            "from the bytes of a JPEG to an input of 224 px, one thread",
            "swag_models, fast",
            functools.partial(prepare_decode, size=(width, height)),
            unit="images",
        )
        for width, height in SIZES
    ),
    Row(
        "embed a folder",
        READING,
        "{items} JPEGs of 500 px to features of vit_nano_hashtags",
        "swag_models, fast",
        prepare_embed,
        (500, 64),
        "images",
        rounds=15,
    ),
    *(
        Row(
            f"shards, {workers} workers",
            READING,
            "{items} batches of 64 JPEGs of 500 px from shards, cropped to 224 px and flipped",
            "swag_models",
            functools.partial(prepare_reader, workers=workers),
            (12, 4),
            "batches",
            rounds=15,
        )
        for workers in (0, 2)
    ),
    *(
        Row(
            f"folder, {workers} workers",
            READING,
            "{items} batches of 32 JPEGs of 400 x 300 px from a folder, normalised float32 of 224 px",
            "swag_models",
            functools.partial(prepare_feed, workers=workers),
            (24, 6),
            "batches",
            rounds=15,
        )
        for workers in (0, 2)
    ),
    *(
        Row(
            f"training step, {arch}",
            TRAINING,
            "one step of AdamW with {items} images of 224 px, float32",
            "swag_models",
            functools.partial(prepare_step, arch=arch),
            (4, 2),
            "images",
            rounds=15,
        )
        for arch in ARCHES
    ),
    Row(
        "training loop, vit_b16",
        TRAINING,
        "steps of {items} JPEGs of 400 x 300 px, 1 worker, float32",
        "swag_models",
        functools.partial(prepare_loop, arch="vit_b16"),
        (4, 2),
        "images",
        rounds=5,
    ),
    Row(
        "loss",
        TRAINING,
        "softmax over 27,000 classes, forward and backward, batch {items}, one thread",
        "swag_models, 1 to 5 classes",
        prepare_loss,
        (64, 64),
        "images",
    ),
    Row(
        "curate",
        "Curation",
        "{items} posts with 5 hashtags, 2 threads, 4 GB",
        "swag_models",
        prepare_curate,
        (2_000_000, 50_000),
        "posts",
        rounds=5,
    ),
    *(
        Row(
            f"nearest neighbours, k = {k}",
            "Evaluation",
            "512 queries among {items} features of width 768, exact",
            "swag_models",
            functools.partial(prepare_neighbours, k=k),
            (200_000, 20_000),
        )
        for k in (20, 200)
    ),
    *(
        Row(
            f"logistic regression, C = {C:g}",
            "Evaluation",
            "{items} features of width 384, 100 classes",
            "swag_models",
            functools.partial(prepare_logistic, C=C),
            (20_000, 2_000),
            rounds=11,
        )
        for C in (0.01, 1.0)
    ),
]
ROWS = {row.name: row for row in ALL}
assert len(ROWS) == len(ALL), "names of rows must be unique"
