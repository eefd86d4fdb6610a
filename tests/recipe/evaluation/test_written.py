"""The commands of the documentation run on small generated scenes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from studies.scenes import write_scenes
from swag_models.cli import main

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("user")
    write_scenes(root / "scenes", 200, 4 * 32, progress=False)
    return root


@pytest.mark.parametrize("document", ["evaluation.md", "associations.md"])
def test_commands_run(
    document: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SWAG_MODELS_CACHE", str(folder / "cache"))
    blocks = re.findall(
        r"^```sh\n(.*?)^```", (DOCS / document).read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    commands = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    assert commands
    for program, *arguments in commands:
        assert program == "swag-models"
        assert main([*arguments, "--quiet"]) == 0
        assert capsys.readouterr().out


def test_images_and_links_exist() -> None:
    for document in ("evaluation.md", "associations.md", "zeroshot.md"):
        targets = re.findall(r"\]\(([^):]+)\)", (DOCS / document).read_text("utf-8"))
        assert [target for target in targets if not (DOCS / target).exists()] == []
