"""Recognise the folders that other steps of the recipe write, to name the right one in messages."""

from collections.abc import Sequence
from pathlib import Path

from swag_models.decoding import parse_json
from swag_models.paths import open_regular

MAX_MANIFEST_BYTES = 1 << 26  # of a manifest.json that is looked at
PACK = "swag-models recipe pack --labels {folder}/labels.parquet --images ... -o shards"
# what a step writes -> what to do with it
STEPS = {
    "curate": f"pack it first: {PACK}",
    "duplicates": "give its exclude.txt to curate --exclude, and the images here",
    "pack": "it is data for recipe train --data",
    "train": "its model is {folder}/model; give the data it was trained on, or other data",
    "finetune or save": "it is a model, for --model or --init; give data",
}


def explain_folder(folder: Path, allowed: Sequence[str] = ()) -> str | None:
    """Say which step of the recipe wrote a folder, and what it is for.

    Args:
        folder: what was given as data.
        allowed: steps whose folders are what is wanted.

    Returns:
        A text such as "curated was written by curate; pack it first: ..."; None if the folder is
        none of a step's, or of an allowed one.
    """
    step = find_step(folder)
    if step is None or step in allowed:
        return None
    return f"{folder} was written by {step}; {STEPS[step].format(folder=folder)}"


def find_step(folder: Path) -> str | None:
    """The step that wrote a folder, by its manifest and the names of its files."""
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return "finetune or save"
    if (folder / "log.jsonl").is_file() and (folder / "checkpoints").is_dir():
        return "train"
    try:
        with open_regular(folder / "manifest.json") as file:
            manifest = parse_json(file.read(MAX_MANIFEST_BYTES))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict):
        return None
    for step, entries in (
        ("curate", {"posts", "hashtags", "labels"}),
        ("pack", {"shards", "num_classes"}),
        ("duplicates", {"copies", "threshold"}),
    ):
        if entries <= manifest.keys():
            return step
    return None
