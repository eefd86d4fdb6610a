"""Each tutorial runs from its first to its last block, in a folder like a clone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


def read_script(page: Path, folder: Path) -> str:
    """The blocks of a page as a shell script; those in Python run in one process."""
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", page.read_text("utf-8"), re.S | re.M)
    lines, code = [], ""
    for number, (language, text) in enumerate(blocks):
        if language == "sh":
            lines.append(text)
            continue
        code += text
        following = blocks[number + 1][0] if number + 1 < len(blocks) else ""
        if following != "python":
            (folder / f"block{number}.py").write_text(code)
            lines.append(f"python block{number}.py\n")
    return "".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorials_run(page: Path, tmp_path: Path) -> None:
    for name in ("examples", "studies", "swag_models"):
        (tmp_path / name).symlink_to(ROOT / name)
    script = read_script(page, tmp_path)
    assert "swag-models" in script or "python" in script
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "SWAG_MODELS_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_navigation_of_the_site_names_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    navigation = yaml.safe_load("nav:" + text.split("\nnav:")[1])
    listed = re.findall(r"[\w/]+\.md", str(navigation))
    assert len(listed) == len(set(listed))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    optional = {"models.md", "migration.md"}  # docs/hooks.py adds them if they exist
    assert pages - optional <= set(listed)
    made = {"index.md", "contributing.md", "security.md", "changelog.md", "benchmarks.md"}
    assert {
        page for page in set(listed) - pages - made if not page.startswith("reference/")
    } == set()


def test_links_of_the_tutorials_and_answers_exist() -> None:
    for page in [*TUTORIALS, ROOT / "docs" / "faq.md"]:
        targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        assert targets
        for target in targets:
            assert (page.parent / target).exists(), f"{page.name}: {target}"
