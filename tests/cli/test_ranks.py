"""Under torchrun, an error that all ranks meet is printed once."""

import subprocess
import sys
from pathlib import Path

import pytest

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
@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_two_ranks_print_one_error(command: str, tmp_path: Path) -> None:
    arguments = ["recipe", command, "vit_nano_hashtags", "--data", str(tmp_path / "gone")]
    if command == "train":
        arguments += ["-o", str(tmp_path / "run")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "-m", "swag_models", *arguments],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert process.stderr.count("swag-models: error: data ") == 1
