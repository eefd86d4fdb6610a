"""docs/models.md is written from the catalog, and names every model once."""

from __future__ import annotations

from write_models import DOCUMENT, make_document

import swag_models


def test_the_page_is_current() -> None:
    assert DOCUMENT.read_text("utf-8") == make_document(), "run: python tests/write_models.py"


def test_every_model_has_a_row() -> None:
    rows = [line.split("`")[1] for line in make_document().splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(swag_models.list_models())
