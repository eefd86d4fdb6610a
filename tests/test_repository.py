"""Files for contributors and releases: workflows, hooks, templates, version."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from release import check

import swag_models

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
TEMPLATES = sorted((GITHUB / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def list_commands(job: dict[str, Any]) -> list[str]:
    """The commands of a job, one for each entry of its matrix."""
    matrix = job.get("strategy", {}).get("matrix", {})
    rows = matrix.get("include") or [{"python": value} for value in matrix.get("python", [""])]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    filled = []
    for row in rows:
        for command in commands:
            for name, value in row.items():
                command = command.replace(f"${{{{ matrix.{name} }}}}", value)
            filled.append(command)
    return filled


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_targets_of_the_makefile_only(path: Path) -> None:
    workflow = read_yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow[True]  # YAML reads the key `on` as a truth value
    for job in workflow["jobs"].values():
        commands = list_commands(job)
        assert commands
        for command in commands:
            program, target = command.split()
            assert program == "make"
            assert target in TARGETS
        actions = [step["uses"] for step in job["steps"] if "uses" in step]
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in actions)
        assert job["timeout-minutes"] <= 360  # the limit of the host


def test_workflows_cover_every_supported_version_of_python() -> None:
    workflows = {path.stem: read_yaml(path)["jobs"] for path in WORKFLOWS}
    versions = workflows["tests"]["tests"]["strategy"]["matrix"]["python"]
    assert tuple(versions) == check.PYTHONS
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'requires-python = ">={versions[0]}"' in project
    assert list_commands(workflows["lint"]["lint"]) == ["make lint"]
    assert set(list_commands(workflows["tests"]["tests"])) == {"make test"}
    weekly = list_commands(workflows["weekly"]["weekly"])
    assert {"make test-slow", "make test-matrix"} <= set(weekly)


def test_hooks_run_the_pinned_linter() -> None:
    (repository,) = read_yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    commands = [hook["entry"].split()[:2] for hook in repository["hooks"]]
    assert commands == [[".venv/bin/ruff", "format"], [".venv/bin/ruff", "check"]]
    pinned = re.search(r'"ruff==([\d.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert pinned
    ruff = Path(sys.executable).with_name("ruff")
    version = subprocess.run([ruff, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.split()[1] == pinned[1]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_issue_templates_are_complete(path: Path) -> None:
    template = read_yaml(path)
    assert template["name"]
    assert template["description"]
    fields = [field for field in template["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    assert all(field["attributes"]["label"] for field in fields)


def test_files_for_contributors_exist() -> None:
    assert len(WORKFLOWS) == 3
    assert len(TEMPLATES) == 2
    assert read_yaml(GITHUB / "ISSUE_TEMPLATE" / "config.yml")
    assert "make check" in (GITHUB / "pull_request_template.md").read_text("utf-8")
    assert "a placeholder: the maintainers replace it" in (ROOT / "SECURITY.md").read_text("utf-8")


def test_the_version_is_stated_once() -> None:
    assert check.read_version() == swag_models.__version__
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert 'dynamic = ["version"]' in project
    assert 'version = { attr = "swag_models.__version__" }' in project
    assert read_yaml(ROOT / "CITATION.cff")["version"] == swag_models.__version__


def test_the_release_check_says_which_python_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["check.py", "--python", "3.99"])
    monkeypatch.setattr(check, "build", lambda folder: tmp_path / "swag_models.whl")
    assert check.main() == 1
    assert "3.99    newest        skipped: no such interpreter" in capsys.readouterr().out
    own = "{}.{}".format(*sys.version_info)
    assert check.find_python(own) == sys.executable


def test_an_interpreter_that_does_not_start_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, code in (("broken", "exit 127"), ("working", "exit 0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "python3.99").write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name / "python3.99").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'broken'}{os.pathsep}{tmp_path / 'working'}")
    assert check.find_python("3.99") == str(tmp_path / "working" / "python3.99")


@pytest.mark.slow  # makes an environment
def test_the_release_check_reports_a_wheel_that_cannot_be_installed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wheel = tmp_path / "swag_models-0-py3-none-any.whl"
    wheel.write_bytes(b"not a wheel")
    result = check.try_wheel(sys.executable, wheel, None, None)
    assert result.startswith("failed: ")
    assert result.endswith(str(wheel)[-30:])
    assert "is invalid" in capfd.readouterr().err
