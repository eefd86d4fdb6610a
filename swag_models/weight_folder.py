"""Find the weights in a folder that a trainer wrote."""

import re
from pathlib import Path
from typing import Any

from swag_models.dcp_folder import METADATA_FILE
from swag_models.decoding import parse_json
from swag_models.errors import CheckpointError
from swag_models.formatting import list_names
from swag_models.hub.hf_format import CONFIG_FILE, INDEX_FILE, MAX_JSON, WEIGHTS_FILE
from swag_models.paths import read_regular

# Of transformers and accelerate, in the order in which they look for them. accelerate stores models
# that FSDP shards as a DCP folder, or in one file.
BIN_FILE = "pytorch_model.bin"
BIN_INDEX_FILE = f"{BIN_FILE}.index.json"
WEIGHT_FILES = (WEIGHTS_FILE, INDEX_FILE, BIN_FILE, BIN_INDEX_FILE, "pytorch_model_fsdp.bin")
DCP_FOLDERS = (".", "pytorch_model_fsdp_0")
# Of further models that accelerate saved beside the first
OTHER_MODELS = re.compile(
    r"(model|pytorch_model)_\d+\.(safetensors|bin)|pytorch_model_fsdp_[1-9]\d*"
)
NUMBERED_CHECKPOINT = re.compile(r"(?:checkpoint|checkpoint_epoch|step|epoch)[-_=]?(\d+)")


def find_weight_files(folder: Path) -> tuple[Path, list[str]]:
    """Return the file or the DCP folder with the weights of a folder, and other models in it.

    Raises:
        CheckpointError: it has no weights in a known format; says what to pass instead.
    """
    names = sorted(entry.name for entry in folder.iterdir())
    others = [name for name in names if OTHER_MODELS.fullmatch(name)]
    for name in WEIGHT_FILES:
        if name in names:
            return folder / name, others
    for name in DCP_FOLDERS:
        if (folder / name / METADATA_FILE).is_file():
            return folder / name, others
    raise CheckpointError(f"{folder} {_describe_folder(folder, names)}")


def _describe_folder(folder: Path, names: list[str]) -> str:
    """Return what a folder without weights contains, and what to do."""
    if "adapter_config.json" in names:
        return (
            "has adapters of PEFT, not a model: load them with PeftModel.from_pretrained(model, "
            "FOLDER), and save what its merge_and_unload() returns"
        )
    if "zero_to_fp32.py" in names:
        return (
            "is a checkpoint of DeepSpeed in parts; run its script, python zero_to_fp32.py . OUT, "
            "and pass the folder OUT"
        )
    numbered = [
        (int(match[1]), name) for name in names if (match := NUMBERED_CHECKPOINT.fullmatch(name))
    ]
    if numbered:
        return f"has no weights, but folders of checkpoints; pass one: {max(numbered)[1]}"
    return (
        f"has no {WEIGHTS_FILE} or {BIN_FILE}; pass a weight file, not its folder; "
        f"it has {list_names(names, 5) or 'no files'}"
    )


def read_folder_config(folder: Path) -> Any:
    """Return the content of a folder's config.json; None if it is missing or not JSON."""
    try:
        return parse_json(read_regular(folder / CONFIG_FILE, MAX_JSON))
    except (OSError, ValueError):
        return None
