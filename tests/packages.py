"""Files of AOTInductor with metadata, without code."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch

from swag_models.export.compiled import CPU_FIELD, TORCH_FIELD
from swag_models.inference.native_code import list_instructions

MEMBER = "model/data/aotinductor/model/abc.wrapper_metadata.json"


def write_package(path: Path, **fields: Any) -> Path:
    strings = {CPU_FIELD: " ".join(list_instructions()), TORCH_FIELD: torch.__version__}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, json.dumps(strings | fields))
    return path
