"""README and docs match the code: snippets run, tables and trees are complete, links exist."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import matrix
import pytest
from PIL import Image

import swag_models
from swag_models import publish
from swag_models.cli import main, make_parser
from swag_models.layouts import TABLES
from swag_models.merged_accuracy import MERGED_ACCURACY

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
USAGE = (ROOT / "docs" / "usage.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
RECIPE = (ROOT / "docs" / "recipe.md").read_text()
STAND_IN = {
    "vit_b16_in1k": "vit_nano_hashtags",
    "vit_b16(": "vit_nano_hashtags(",
    "path/to/swag_models": str(ROOT),
}


def blocks(language: str, text: str = README + USAGE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def between(mark: str, text: str) -> str:
    match = re.search(rf"<!-- {mark}:.*?-->\n(.*?)<!-- /{mark} -->", text, re.DOTALL)
    assert match
    return match[1]


def stand_in(text: str) -> str:
    """Replace the models in a text that must be downloaded with the included one."""
    for published, shipped in STAND_IN.items():
        text = text.replace(published, shipped)
    return text


SNIPPETS = list(dict.fromkeys(blocks("python")))  # README repeats one of usage.md


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


def make_folder(tmp_path: Path) -> Path:
    """A user's folder with photos, a checkpoint and a published model, without network access."""
    (tmp_path / "photos").mkdir()
    for path in (tmp_path / "photo.jpg", tmp_path / "photos" / "other.jpg"):
        Image.new("RGB", (60, 40), "teal").save(path)
    publish.save(swag_models.load_model("vit_nano_hashtags"), tmp_path / "vit-folder")
    weights = Path(swag_models.__file__).parent / "weights" / "vit_nano_hashtags.safetensors"
    shutil.copy(weights, tmp_path / "vit_b16.torch")
    shutil.copy(weights, tmp_path / "checkpoint.pth")
    return tmp_path


RUN_SNIPPETS = """
import json, sys, traceback
errors = []
for code in json.load(sys.stdin):
    try:
        exec(compile(code, "snippet", "exec"), {"__name__": "__main__"})
        errors.append(None)
    except BaseException:
        errors.append(traceback.format_exc())
json.dump(errors, open("errors.json", "w"))
"""


@pytest.fixture(scope="module")
def snippet_errors(tmp_path_factory: pytest.TempPathFactory) -> list[str | None]:
    """What each snippet raised. They run in one process, since importing torch takes seconds."""
    root = make_folder(tmp_path_factory.mktemp("snippets"))
    (root / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff")  # is left out with a message
    done = subprocess.run(
        [sys.executable, "-c", RUN_SNIPPETS],
        input=json.dumps([stand_in(code) for code in SNIPPETS]),
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors: list[str | None] = json.loads((root / "errors.json").read_text())
    return errors


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_python_snippets_run(number: int, snippet_errors: list[str | None]) -> None:
    assert snippet_errors[number] is None


@pytest.mark.parametrize(
    "command",
    sorted(
        {line for block in blocks("sh") for line in block.splitlines() if line.startswith("swag")}
    ),
)
def test_commands_run(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SWAG_MODELS_CACHE", str(folder / "cache"))
    monkeypatch.setenv("SWAG_MODELS_OFFLINE", "1")
    program, *arguments = shlex.split(stand_in(command), comments=True)
    assert program == "swag-models"
    assert main(arguments) == 0
    assert capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("trained", [False, True])
def test_the_recipe_runs_from_scenes_to_a_model(trained: bool, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    commands, *_, training, presets, _ = blocks("sh", RECIPE)
    small = commands.replace("20000", "200 --held-out 32").replace(
        "--shard-size 1000", "--shard-size 25"
    )
    assert small.count("\n") == 3
    short = training.replace("--license", "--set steps=2 --license")
    done = subprocess.run(
        ["bash", "-ec", small + (short if trained else "") + presets],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loading, running = blocks("python", RECIPE)
    checked = "assert images.shape == (32, 3, 64, 64) and len(classes) == 32 and state"
    running = running.replace("steps=20", "steps=2") if trained else ""
    code = f"{loading.replace('256', '32')}\n{checked}\n{running}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "short" / "model" / "config.json").exists() == trained


def list_commands(parser: ArgumentParser) -> dict[str, list[str]]:
    """Subcommands, and those below each."""
    found = {}
    for action in parser._actions:
        if isinstance(action.choices, dict):
            found |= {name: [*list_commands(child)] for name, child in action.choices.items()}
    return found


def test_commands_that_the_documents_name_exist() -> None:
    commands = list_commands(make_parser())
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    named = 0
    for path in documents:
        text = path.read_text()
        for program in re.findall(r"(?:`|^\$? ?)swag-models ([a-z][a-z-]*)", text, re.MULTILINE):
            assert program in commands, f"{path.name}: swag-models {program}"
        for name in re.findall(r"(?:`|swag-models )recipe ([a-z][a-z-]*)", text):
            assert name in commands["recipe"], f"{path.name}: recipe {name}"
            named += 1
    assert named > 20
    bare = {*re.findall(r"`([a-z]+)`", README)} & ({*commands["recipe"]} - {*commands})
    assert not bare, f"README.md: write recipe {bare}"


def test_files_of_the_clone_that_the_documents_name_exist() -> None:
    folders = ("docs", "benchmarks", "examples")
    documents = [*ROOT.glob("*.md"), *(p for f in folders for p in (ROOT / f).rglob("*.md"))]
    pattern = r"(?<![\w./-])(?:swag_models|examples|studies|tests|benchmarks)/[\w/.-]*\w"
    named = {
        (path.name, name) for path in documents for name in re.findall(pattern, path.read_text())
    }
    assert len(named) > 50
    assert not [item for item in sorted(named) if not (ROOT / item[1]).exists()]


def test_snippets_and_commands_are_found() -> None:
    assert len(blocks("python")) >= 3
    assert len(blocks("sh")) >= 4


def test_make_targets_that_the_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(
        re.findall(
            r"(?:`|^)make ([a-z-]+)", README + (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
        )
    )
    assert named
    assert named <= targets


def test_the_matrix_names_tests_that_exist() -> None:
    assert all((ROOT / path).exists() for path in (*matrix.NUMERICAL, *matrix.SIGNALS))


def test_the_lowest_tested_versions_are_those_the_package_requires() -> None:
    lines = (ROOT / "tests" / "floor.txt").read_text().splitlines()[1:]
    project = (ROOT / "pyproject.toml").read_text()
    project = project[project.index("\ndependencies") : project.index("[project.optional")]
    required = dict(re.findall(r'"(\w+)>=([\d.]+)"', project))
    floor = dict(line.split("==") for line in lines)
    assert floor.keys() == required.keys()
    assert all(floor[name].startswith(required[name]) for name in floor)


def test_the_table_of_token_merging_has_the_figures_of_info() -> None:
    for name, figures in MERGED_ACCURACY.items():
        accuracy = f"{figures.top1:.2f} -> {figures.merged_top1:.2f}"
        rate = f"{figures.rate} -> {figures.merged_rate} ({figures.speedup:.2f}x)"
        size = swag_models.get_spec(name).image_size
        row = f"| `{name}` | {size} | {figures.merge_tokens} | {accuracy} | {rate} |"
        assert USAGE.count(f"\n{row}\n") == 1
        # without merging, the authors measured what the catalog states, of SWAG's own figures
        metrics = swag_models.get_spec(name).metrics
        assert metrics
        assert abs(metrics.top1 - figures.top1) < 0.02
    assert len(re.findall(r"\(\d\.\d\dx\) \|\n", USAGE)) == len(MERGED_ACCURACY)


def test_the_model_table_is_the_catalog() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in between("models", README).splitlines()[2:]
    ]
    expected = []
    for name in swag_models.list_models():
        spec = swag_models.get_spec(name)
        accuracy = "-"
        if spec.metrics and spec.metrics.dataset == "imagenet-1k":
            accuracy = f"{spec.metrics.top1} / {spec.metrics.top5 or '-'}"
        output = "features" if spec.num_classes is None else f"{spec.num_classes} classes"
        parameters = f"{spec.num_params / 1e6:.1f}M"
        included = (Path(swag_models.__file__).parent / "weights" / f"{name}.safetensors").exists()
        size = f"{spec.num_params * 4 / 1e6:,.0f} MB"
        download = "included" if included else f"[{size}]({spec.sources[0].url})"
        licenses = {"scenes": "apache-2.0", "drawings": "cc-by-4.0"}
        assert spec.license == licenses.get(spec.pretraining or "", "cc-by-nc-4.0")
        expected.append(
            [
                f"`{name}`",
                parameters,
                download,
                str(spec.image_size),
                f"{spec.gmacs:.2f}",
                output,
                accuracy,
            ]
        )
    assert rows == expected


def test_the_tree_names_every_file_of_the_package() -> None:
    lines = [
        line for line in between("tree", CONTRIBUTING).splitlines() if not line.startswith("```")
    ]
    top = [line.split()[0].rstrip("/") for line in lines if line and not line.startswith("    ")]
    assert all((ROOT / name).exists() or (ROOT / "swag_models" / name).exists() for name in top)
    present = {
        path.name
        for path in (ROOT / "swag_models").iterdir()
        if path.suffix != ".typed" and path.name != "__pycache__"
    }
    assert present <= set(top)
    recipe = [line.split("  ")[2:] for line in lines if line.startswith("    ")]
    names = {name.strip("/, ") for words in recipe for name in words[0].split()}
    parts = {
        path.stem for path in (ROOT / "swag_models" / "recipe").iterdir() if path.suffix == ".py"
    }
    assert names <= parts | {"classes", "curation", "data", "training", "evaluation"}


def test_every_path_of_the_table_exists() -> None:
    table = CONTRIBUTING[CONTRIBUTING.index("| to | open |") : CONTRIBUTING.index("## Conventions")]
    paths = re.findall(r"`([\w./]+(?:\.py|\.txt|\.md|/))`", table)
    assert len(paths) > 20
    folders = [ROOT, ROOT / "swag_models", *(ROOT / "swag_models" / "recipe").rglob("*/")]
    for path in paths:
        assert any((folder / path).exists() for folder in folders), path


def test_the_benchmarks_are_listed_in_the_documentation_and_the_help() -> None:
    from swag_models.recipe.evaluation.accuracy.benchmarks import BENCHMARKS

    documented = (ROOT / "docs" / "evaluation.md").read_text()
    command = [sys.executable, "-m", "swag_models", "recipe", "evaluate", "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in BENCHMARKS:
        assert f"`{name}`" in documented
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", help_text), name


def test_the_tree_of_errors_is_complete() -> None:
    from swag_models import errors

    assert errors.__doc__
    drawn = re.findall(r"([A-Z]\w+Error)(?: \((\w+)\))?", errors.__doc__)
    assert sorted(name for name, _ in drawn) == sorted(errors.__all__)
    for name, base in drawn:
        assert not base or base in {parent.__name__ for parent in getattr(errors, name).__mro__}


def test_the_names_of_the_original_are_those_of_its_layout() -> None:
    text = (ROOT / "docs" / "coming_from.md").read_text()
    for family, table in TABLES.items():
        for names in table:
            for name in re.split(r"[.*]+", re.sub(r"\{\w+\}", "", names.swag)):
                assert name.strip("-_0123456789") in text, f"{family}: {name}"


def test_linked_files_exist() -> None:
    for document in (
        "README.md",
        "CONTRIBUTING.md",
        "benchmarks/README.md",
        "docs/recipe.md",
        "docs/scale.md",
        "docs/yfcc100m.md",
        "docs/evaluation.md",
        "docs/multilabel.md",
        "docs/distill.md",
        "docs/duplicates.md",
        "docs/usage.md",
        "docs/serving.md",
        "docs/sharing.md",
        "docs/coming_from.md",
    ):
        text = (ROOT / document).read_text()
        assert text
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert ((ROOT / document).parent / target).exists(), f"{document}: {target}"
