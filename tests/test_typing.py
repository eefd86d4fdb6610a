"""What type checkers know: names, options and results; declarations equal to the catalog."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

import swag_models
from swag_models import signatures
from swag_models.inference.pipeline import InferencePipeline

ROOT = Path(__file__).parents[1]
FILES = Path(__file__).parent / "typing"


def run_mypy(cache: str | Path, *options: str | Path, **environment: str) -> dict[str, list[str]]:
    """The errors of mypy in right.py and wrong.py: "file:line" -> messages."""
    pytest.importorskip("mypy")
    command = [
        sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary",
        "--ignore-missing-imports", "--config-file=", "--cache-dir", cache, *options,
        "right.py", "wrong.py",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=FILES,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    errors: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if match := re.fullmatch(r"(\w+\.py:\d+): error: (.*)", line):
            errors.setdefault(match[1], []).append(match[2])
    return errors


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_misspelt_names_and_options_are_errors(real: bool, tmp_path: Path) -> None:
    if real:  # mypy reads all of torch, which takes a minute
        errors = run_mypy(tmp_path, MYPYPATH=str(ROOT))
    else:
        path = f"{FILES / 'stubs'}{os.pathsep}{ROOT}"
        errors = run_mypy(os.devnull, "--no-site-packages", MYPYPATH=path)
    assert not [line for line in errors if line.startswith("right.py")]
    expected = {
        f"wrong.py:{number}": line.partition("  # ")[2]
        for number, line in enumerate((FILES / "wrong.py").read_text("utf-8").splitlines(), 1)
        if "  # " in line
    }
    assert set(errors) == set(expected)
    for place, pattern in expected.items():
        assert any(re.search(pattern, message) for message in errors[place]), errors[place]


def test_names_of_models_are_declared() -> None:
    literals = {
        "vit": signatures.ViTName,
        "regnet": signatures.RegNetName,
        "resnet": signatures.ResNetName,
    }
    for family, literal in literals.items():
        assert sorted(get_args(literal)) == sorted(swag_models.list_models(family=family))
    tree = ast.parse(Path(swag_models.__file__).read_text("utf-8"))
    makers = {
        node.targets[0].id: (node.value.func.id, node.value.args[0].value)  # type: ignore[attr-defined]
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
    }
    families = {name: swag_models.get_spec(name).family for name in swag_models.list_models()}
    assert makers == {name: (f"_make_{kind}_builder", name) for name, kind in families.items()}


def collect_options(function: Any, *others: str) -> dict[str, str]:
    """The keyword options of a function and their annotations, without some."""
    parameters = inspect.signature(function).parameters.values()
    return {
        parameter.name: getattr(parameter.annotation, "__forward_arg__", parameter.annotation)
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in others
    }


def list_annotations(options: Any) -> dict[str, str]:
    return {name: hint.__forward_arg__ for name, hint in options.__annotations__.items()}


def test_options_of_load_model_are_declared() -> None:
    timm = {"img_size": "ImageSize | None", "checkpoint_path": "str | os.PathLike[str] | None"}
    expected = collect_options(swag_models.load_model, "features_only", "out_indices") | timm
    assert list_annotations(signatures.LoadOptions) == expected
    by_name = {
        key: value for key, value in expected.items() if key not in ("pretrained", "progress")
    }
    assert list_annotations(signatures.ModelOptions) == by_name


def test_options_of_pipelines_are_declared() -> None:
    own = set(collect_options(InferencePipeline))
    passed = set(list_annotations(signatures.ForwardedOptions))
    assert set(list_annotations(signatures.PipelineOptions)) == own | passed
    fixed = {"num_classes", "in_chans"}
    assert own | passed >= set(list_annotations(signatures.LoadOptions)) - fixed
    assert not fixed & (own | passed)
