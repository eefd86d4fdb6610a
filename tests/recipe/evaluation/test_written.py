"""The commands of the documentation run on small generated scenes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from studies import __main__ as studies
from studies.scenes import write_scenes
from swag_models.cli import main

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("user")
    write_scenes(root / "scenes", 200, 4 * 32, progress=False)
    return root


def list_blocks() -> list[str]:
    """The commands of both documents."""
    text = "".join(
        (DOCS / name).read_text("utf-8") for name in ("evaluation.md", "associations.md")
    )
    return re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, marks=pytest.mark.slow if "python -m studies" in block else ())
        for block in list_blocks()
    ],
    ids=lambda block: " ".join(block.split()[:3]),
)
def test_commands_run(
    block: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SWAG_MODELS_CACHE", str(folder / "cache"))
    for program, *arguments in (shlex.split(line, comments=True) for line in block.splitlines()):
        if program == "python":
            module, *options = arguments[1:]
            assert module == "studies"
            assert studies.main([*options, "--quiet"]) == 0
        else:
            assert program == "swag-models"
            assert main([*arguments, "--quiet"]) == 0
        assert capsys.readouterr().out


def test_images_and_links_exist() -> None:
    for document in ("evaluation.md", "associations.md", "zeroshot.md"):
        targets = re.findall(r"\]\(([^):]+)\)", (DOCS / document).read_text("utf-8"))
        assert [x for x in targets if not (DOCS / x.partition("#")[0]).exists()] == []
