"""`swag-models save` and `push`, and other subcommands on a saved folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import Hub
from image_support import predict_labels

import swag_models
from swag_models.cli import main
from swag_models.publish import save

ROOT = Path(__file__).parents[2]
NANO = "vit_nano_hashtags"
Capture = pytest.CaptureFixture[str]


pytestmark = pytest.mark.usefixtures("caches")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "mine"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a new process."""
    command = [sys.executable, "-m", "swag_models", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_save_writes_a_folder_and_prints_it(folder: Path, capsys: Capture) -> None:
    assert main(["save", NANO, str(folder)]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (f"{folder}\n", "")
    spec, origin = swag_models.get_spec(folder), swag_models.get_spec(NANO)
    assert (spec.metrics, spec.description, spec.license) == (
        origin.metrics,
        origin.description,
        "apache-2.0",
    )


def test_save_of_a_changed_model_states_no_accuracy(folder: Path) -> None:
    for option in (["--image-size", "64"], ["--dtype", "bfloat16"]):
        assert main(["save", NANO, str(folder), *option]) == 0
        assert swag_models.get_spec(folder).metrics is None
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_other_subcommands_accept_a_saved_folder(folder: Path, capsys: Capture) -> None:
    save(swag_models.load_model(NANO), folder)
    assert main(["info", str(folder)]) == 0
    assert f"on this machine  {folder / 'model.safetensors'}" in capsys.readouterr().out
    assert main(["fetch", str(folder)]) == 0
    assert capsys.readouterr().out == f"mine\t{folder / 'model.safetensors'}\n"
    assert main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("ok\tmine\t")
    house = ROOT / "examples" / "scenes" / "house.jpg"
    assert main(["classify", "--model", str(folder), str(house), "--top-k", "1"]) == 0
    assert capsys.readouterr().out.split()[-1] == predict_labels(house)[0]
    (folder / "model.safetensors").write_bytes(b"x")
    assert main(["verify", str(folder)]) == 1
    assert capsys.readouterr().out.startswith("FAILED\tmine\t")


def test_info_shows_a_missing_licence_and_class_names(folder: Path, capsys: Capture) -> None:
    save(swag_models.load_model(NANO, pretrained=False, num_classes=3), folder)
    assert main(["info", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "license          unknown\n" in output
    assert "classes          3 (without names)\n" in output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["save", "vit_b17", "x"], 2, "unknown model 'vit_b17'; did you mean: vit_b16"),
        (
            ["save", NANO, "x", "--image-size", "30"],
            2,
            "30x30 is not a multiple of the patch size 8",
        ),
        (["push", NANO, "tiny", "--dry-run"], 2, "invalid repository 'tiny': write org/repo"),
        (
            ["push", NANO, "org/tiny"],
            1,
            "no token with write access to org/tiny; set HF_TOKEN, or run: hf auth login",
        ),
        (["push", str(ROOT), "org/tiny"], 2, "is not a published model: it has no config.json"),
        (
            ["push", NANO, "org/a--b", "--dry-run"],
            2,
            "invalid repository 'org/a--b': write org/repo",
        ),
        (
            ["push", str(ROOT), "org/tiny", "--dtype", "bfloat16"],
            2,
            "a folder, which is uploaded unchanged; use save to change it first",
        ),
        (
            ["push", str(ROOT), "org/tiny", "--image-size", "64"],
            2,
            "a folder, which is uploaded unchanged; use save to change it first",
        ),
        (["info", "hf-hub:tiny"], 2, "invalid repository name 'hf-hub:tiny'"),
        (["info", "hf-hub:org/a--b"], 2, "invalid repository name 'hf-hub:org/a--b'"),
        (["info", "hf-hub:org/a-@dev"], 2, "invalid repository name 'hf-hub:org/a-@dev'"),
        (["info", f"hf-hub:org/{97 * 'a'}"], 2, "at most 96"),
    ],
)
def test_invalid_arguments_are_an_error_of_one_line(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: Capture
) -> None:
    assert (
        main([str(tmp_path / "x") if argument == "x" else argument for argument in arguments])
        == code
    )
    captured = capsys.readouterr()
    assert not captured.out
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err


def test_a_dry_run_prints_files_and_card_and_sends_no_request() -> None:
    with Hub({}) as hub:
        result = run("push", NANO, "org/tiny", "--dry-run", HF_ENDPOINT=hub.url)
        assert result.returncode == 0, result.stderr
        assert not hub.requests
    files, card = result.stdout.split("\n\n", 1)
    sizes = dict(line.split("\t") for line in files.splitlines())
    assert list(sizes) == ["README.md", "config.json", "model.safetensors"]
    assert int(sizes["README.md"]) == len(card.encode())
    assert 'load_model("hf-hub:org/tiny")' in card
    assert "# tiny\n" in card
    assert (
        "dry run, nothing is uploaded; these files and this card would go to hf-hub:org/tiny"
        in result.stderr
    )


def test_a_catalog_name_takes_precedence_over_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / NANO).mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["push", NANO, "org/tiny", "--dry-run"]) == 0
    assert "\nmodel.safetensors\t" in capsys.readouterr().out


@pytest.mark.slow
def test_push_of_a_catalog_model_keeps_its_licence_and_accuracy() -> None:
    with Hub({"hf_writer": ("org",)}) as hub:
        result = run(
            "push",
            NANO,
            "org/tiny",
            "--private",
            "--message",
            "Hello",
            HF_ENDPOINT=hub.url,
            HF_TOKEN="hf_writer",
        )
        assert result.returncode == 0, result.stderr
        repo = hub.repos["org/tiny"]
        assert repo.private
        commit = repo.branches["main"]
    assert result.stdout == f"{hub.url}/org/tiny/commit/{commit}\n"
    assert "load it with: swag_models.load_model('hf-hub:org/tiny')" in result.stderr
    card = repo.commits[commit]["README.md"].decode()
    assert "license: apache-2.0" in card
    metrics = swag_models.get_spec(NANO).metrics
    assert metrics
    assert f"Top-1 {metrics.top1}% on 960 held-out scenes." in card
