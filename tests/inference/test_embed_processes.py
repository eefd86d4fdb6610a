"""`swag-models embed` in other processes: killed, interrupted, two at once, split by torchrun."""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from fetch_support import wait_until
from image_support import NANO, encode_image, list_names, make_command, write_images

from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.inference.embed import write_embeddings
from swag_models.inference.embeddings_file import read_embeddings
from swag_models.inference.predict import Embedder

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT, BATCH = 320, 4


@pytest.fixture(scope="module")
def embedder(one_thread: None) -> Embedder:
    return Embedder(NANO, batch_size=BATCH)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    paths = write_images(tmp_path / "images", COUNT)
    paths[7].write_bytes(encode_image(7)[:300])
    return paths


@contextlib.contextmanager
def start(paths: list[Path], output: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the command; it is killed at the end of the `with` block."""
    command = make_command(
        "embed",
        *paths,
        "--model",
        NANO,
        "-o",
        output,
        "--batch-size",
        str(BATCH),
        "--workers",
        "1",
    )
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def count_done(output: Path) -> int:
    """Number of images that rows.jsonl accounts for."""
    journal = output.with_name(f"{output.name}.work") / "rows.jsonl"
    lines = journal.read_text().split("\n")[:-1] if journal.exists() else []
    return sum(json.loads(line)["count"] for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 12])
def test_work_that_is_killed_repeatedly_loses_and_repeats_nothing(
    kills: int, embedder: Embedder, paths: list[Path], tmp_path: Path
) -> None:
    whole, output = tmp_path / "whole.parquet", tmp_path / "x.parquet"
    write_embeddings(embedder, paths, whole, progress=False)
    rng, done = random.Random(), 0
    for _ in range(kills):
        aim = done + rng.randint(1, COUNT // (2 * kills))
        with start(paths, output) as process:
            wait_until(lambda aim=aim: count_done(output) >= aim, timeout=120)
            time.sleep(rng.uniform(0, 0.01))
            process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL
        done = count_done(output)
        assert aim <= done < COUNT
        assert not output.exists()
        for path in paths[:done]:
            path.unlink(missing_ok=True)  # reading one of them again would fail
    with start(paths, output) as process:
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, "one image cannot be read"
    assert stdout == f"{output}\n"
    assert re.search(r"(\d+)/320 \[", stderr), stderr
    assert int(re.findall(r"(\d+)/320 \[", stderr)[0]) == done
    assert "100%" in stderr
    assert f"skipped: {paths[7]}" in stderr
    assert "319 rows, 1 image could not be read" in stderr
    assert output.read_bytes() == whole.read_bytes()
    assert list_names(tmp_path) == ["images", "whole.parquet", "x.parquet"]


@pytest.mark.slow
def test_another_process_is_rejected_and_ctrl_c_ends_the_work_at_once(
    embedder: Embedder, paths: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "x.npy"
    with start(paths, output) as process:
        wait_until(lambda: count_done(output) > 0, timeout=120)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(
            ConfigError,
            match=r"another process is writing .*x\.npy; wait for it, or choose another output",
        ):
            write_embeddings(embedder, paths, output, progress=False)
        process.send_signal(signal.SIGINT)
        interrupted = time.monotonic()
        process.send_signal(signal.SIGCONT)
        stdout, stderr = process.communicate(timeout=120)
        assert time.monotonic() - interrupted < 10
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.endswith("swag-models: error: interrupted\n")
    assert "Traceback" not in stderr
    assert 0 < count_done(output) < COUNT
    summary = write_embeddings(embedder, paths, output, progress=False)
    write_embeddings(embedder, paths, tmp_path / "whole.npy", progress=False)
    assert (summary.rows, len(summary.skipped)) == (COUNT - 1, 1)
    assert output.read_bytes() == (tmp_path / "whole.npy").read_bytes()


@pytest.mark.slow
def test_torchrun_splits_the_work_and_merge_joins_the_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_images(tmp_path / "images", 64)[0].parent
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "swag_models",
    ]
    work = ["embed", str(folder), "--model", NANO, "-o"]
    process = subprocess.run(
        [*torchrun, *work, str(tmp_path / "x.parquet")], capture_output=True, text=True, check=False
    )
    parts = [str(tmp_path / f"x-0000{rank}-of-00002.parquet") for rank in range(2)]
    assert process.returncode == 0, process.stderr
    assert sorted(process.stdout.split()) == parts
    assert [len(read_embeddings(part).names) for part in parts] == [32, 32]
    assert main(["merge", *parts, "-o", str(tmp_path / "merged.parquet")]) == 0
    assert main([*work, str(tmp_path / "whole.parquet"), "--quiet"]) == 0
    assert (
        capsys.readouterr().out == f"{tmp_path / 'merged.parquet'}\n{tmp_path / 'whole.parquet'}\n"
    )
    merged, whole = (tmp_path / f"{name}.parquet" for name in ("merged", "whole"))
    assert pyarrow.parquet.read_schema(merged) == pyarrow.parquet.read_schema(whole)
    # Two processes at a time may use other kernels than one.
    vectors, names, skipped = read_embeddings(merged)
    expected = read_embeddings(whole)
    assert (names, skipped) == (expected.names, expected.skipped)
    torch.testing.assert_close(vectors, expected.vectors)


def test_rank_and_world_size_are_read_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_images(tmp_path / "images", 3 * BATCH)[0].parent
    work = ["embed", str(folder), "--model", NANO, "--batch-size", str(BATCH), "--quiet", "-o"]
    assert main([*work, str(tmp_path / "whole.npy")]) == 0
    for name in ("RANK", "WORLD_SIZE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "x")
            assert main([*work, str(tmp_path / "x.npy")]) == 2
            assert capsys.readouterr().err.endswith(
                f"swag-models: error: {name} is 'x' in the environment; "
                "set an integer as torchrun does, or unset it\n"
            )
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        assert main([*work, str(tmp_path / "x.npy")]) == 0
        assert main([*work, str(tmp_path / "x.npy")]) == 0, "a finished part is kept on a rerun"
    parts = [str(path) for path in tmp_path.glob("x-*.npy")]
    assert len(parts) == 3
    assert main(["merge", *parts[:2], "-o", str(tmp_path / "merged.npy")]) == 2
    assert "swag-models: error: 2 of 3 parts passed; missing: " in capsys.readouterr().err
    assert main(["merge", *parts, "-o", str(tmp_path / "merged.npy")]) == 0
    for suffix in (".npy", ".json"):
        assert (tmp_path / f"merged{suffix}").read_bytes() == (
            tmp_path / f"whole{suffix}"
        ).read_bytes()
