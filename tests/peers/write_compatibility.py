"""Write docs/compatibility.md: python tests/peers/write_compatibility.py"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/, when run as a script

from peers.compatibility import SECTIONS

from swag_models.atomic import atomic_write
from swag_models.formatting import markdown_table

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"
INTRODUCTION = """\
# Compatibility

<!-- Written by tests/peers/write_compatibility.py from tests/peers/compatibility.py. -->

What works on a model of this library as on one of timm or torchvision. Each cell is a test that
runs on the two included models, and on a comparable model of the other library as control
(`make peers`, with the versions in the group `dev` of `pyproject.toml`).

- works: the call returns what it returns for the other library's model: same shapes and meaning.
- refused: an error of this library, in one line that says what to do.
- none: the family has no such thing; the other library's model of the family gives the same error.

`timm.create_model` needs `import swag_models.timm`, and names are `swag_vit_b16_in1k` and so on.
"""


def make_document() -> str:
    """Return the text of docs/compatibility.md."""
    parts = [INTRODUCTION.rstrip()]
    for title, rows in SECTIONS.items():
        cells = [(row.api, row.describe("vit"), row.describe("regnet")) for row in rows]
        parts.append(f"## {title}\n\n{markdown_table(('call', 'ViT', 'RegNet'), cells)}")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    with atomic_write(DOCUMENT) as temporary:
        temporary.write_text(make_document(), "utf-8")
    print(DOCUMENT)
