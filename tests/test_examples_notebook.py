"""The notebook runs offline, in a process of its own, and its stored outputs are those of a run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path("examples/quickstart.ipynb")


def read_cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_cells_run_offline_and_print_what_is_stored(tmp_path: Path) -> None:
    cells = read_cells()
    code = "\n".join("".join(cell["source"]) for cell in cells)
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.getcwd()},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    stored = "".join("".join(output["text"]) for cell in cells for output in cell["outputs"])
    assert stored.count("pear") >= 4
    # Numbers differ by the CPU, and with them the less probable classes.
    first_words = [re.findall(r"[a-z_]+", text)[:2] for text in stored.splitlines()]
    assert first_words == [re.findall(r"[a-z_]+", text)[:2] for text in process.stdout.splitlines()]
    assert list(tmp_path.iterdir()) == []


def test_readme_links_the_notebook() -> None:
    assert f"]({NOTEBOOK})" in Path("README.md").read_text()
