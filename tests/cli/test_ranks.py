"""Under torchrun, an error that all ranks meet is printed once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import make_digits

from swag_models import cli


@pytest.mark.parametrize(
    ("rank", "torchrun", "waits"), [("0", True, 0), ("1", True, 1), ("1", False, 0)]
)
def test_ranks_but_the_first_wait_before_they_print(
    rank: str,
    torchrun: bool,
    waits: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    slept = list[float]()
    monkeypatch.setattr("time.sleep", slept.append)
    assert cli.main(["info", "gone"]) == 2
    assert slept == [cli.RANK_WAIT] * waits
    assert capsys.readouterr().err.startswith("swag-models: error: unknown model 'gone'")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "evaluate vit_nano_hashtags --data gone",
        "train vit_nano_hashtags --data gone -o run",
        "probe vit_nano_hashtags --train gone --test gone",
        "zeroshot vit_nano_hashtags --data gone --targets owl --wordnet gone",
        "associations vit_nano_hashtags --groups gone.csv --group-column x -o new",
    ],
)
def test_two_ranks_print_one_error(command: str, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "-m", "swag_models", "recipe", *command.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert process.returncode == 1
    assert process.stderr.count("swag-models: error: ") == 1
    assert "gone" in process.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_ranks_of_torchrun_print_one_table(tmp_path: Path) -> None:
    """The last of 21 images is broken, which both ranks report by their exit code."""
    make_digits(tmp_path / "train", 21)
    next((tmp_path / "train").rglob("20.png")).write_bytes(b"")
    command = "probe vit_nano_hashtags --train train --test train --shots 1 --batch-size 4 --quiet"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "-m", "swag_models", "recipe", *command.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "SWAG_MODELS_CACHE": str(tmp_path / "cache")},
    )
    assert process.returncode == 1
    assert process.stdout.count("| model | method |") == 1
    assert process.stdout.count("| knn |") == 2
    # by rank 0, of the training images and of the test images
    assert process.stderr.count("left out 1 image or shard of train") == 2
