"""Downloads in processes: killed half-way, several at once, on a terminal, at full size."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fetch_support import (
    FETCH,
    FETCH_WITHOUT_LOCK,
    MIB,
    finish,
    isolate,
    list_files,
    make_safetensors,
    make_spec,
    run,
    start,
    wait_until,
)
from server import Fault, Server, sha256

from swag_models import get_spec, load_model
from swag_models.hub.fetch import fetch_weights, verify_weights
from swag_models.layouts import translate_layout
from swag_models.spec import ModelSpec, Source

CONTENT = make_safetensors(6 * MIB)
HASHES = pytest.mark.parametrize("sha", [sha256(CONTENT), None], ids=["hash", "no-hash"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder."""
    return isolate(tmp_path, monkeypatch)


def serve(
    server: Server, *faults: Fault, sha: str | None = None, validators: bool = True
) -> ModelSpec:
    """A model whose weights the server has."""
    return make_spec(
        Source(server.put("/x.pth", CONTENT, *faults, validators=validators), "timm", sha)
    )


def parts(cache: Path) -> list[Path]:
    """The part files."""
    return list_files(cache / "parts")


def kill_after(spec: ModelSpec, cache: Path, size: int) -> int:
    """Kill a downloading process once it has `size` bytes on disk; the number of bytes it had."""
    with start(spec) as process:
        wait_until(lambda: sum(part.stat().st_size for part in parts(cache)) >= size)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    (part,) = parts(cache)
    return part.stat().st_size


@HASHES
def test_a_killed_download_is_resumed_by_the_next_process(
    server: Server, cache: Path, sha: str | None
) -> None:
    spec = serve(server, Fault(hold=3 * MIB + 100), sha=sha)
    size = kill_after(spec, cache, 3 * MIB)
    path, errors = run(spec)
    assert path is not None, errors
    assert path.read_bytes() == CONTENT
    assert server.list_start_bytes("/x.pth") == [None, size], "only the missing bytes are requested"
    assert server.list_requests("/x.pth")[1].headers["if-range"] == f'"{sha256(CONTENT)[:20]}"'
    assert not parts(cache)


def test_a_part_that_cannot_be_resumed_is_deleted(server: Server, cache: Path) -> None:
    spec = serve(server, Fault(hold=3 * MIB), validators=False)
    kill_after(spec, cache, 2 * MIB)
    path, errors = run(spec)
    assert path is not None, errors
    assert path.read_bytes() == CONTENT
    assert server.list_start_bytes("/x.pth") == [None, None]
    assert not parts(cache)


def test_a_killed_process_does_not_keep_the_lock(server: Server, cache: Path) -> None:
    spec = serve(server, Fault(hold=0))
    with start(spec) as process:
        server.wait_for("/x.pth", 1)
        assert list_files(cache / "locks")
        process.kill()
        process.communicate()
    path, errors = run(spec)
    assert path is not None, errors
    assert "waiting for another process" not in errors


@HASHES
def test_two_processes_download_once(server: Server, cache: Path, sha: str | None) -> None:
    spec = serve(server, Fault(hold=MIB), sha=sha)
    with start(spec) as first:
        server.wait_for("/x.pth", 1)
        with start(spec) as second:
            assert second.stderr is not None
            assert "waiting for another process that is downloading" in second.stderr.readline()
            server.release.set()
            results = [finish(process)[0] for process in (first, second)]
    assert results[0] is not None
    assert results[0] == results[1]
    assert results[0].read_bytes() == CONTENT
    assert server.list_start_bytes("/x.pth") == [None]
    assert not parts(cache)


@HASHES
def test_a_process_that_another_one_overtakes_gets_the_file(
    server: Server, cache: Path, sha: str | None
) -> None:
    spec = serve(server, Fault(hold=3 * MIB), sha=sha)
    with start(spec, FETCH_WITHOUT_LOCK) as slow:
        wait_until(lambda: sum(part.stat().st_size for part in parts(cache)) >= 2 * MIB)
        quick, errors = run(spec, FETCH_WITHOUT_LOCK)
        assert quick is not None, errors
        server.release.set()
        path, errors = finish(slow)
    assert path == quick, errors
    assert quick.read_bytes() == CONTENT
    assert not parts(cache)
    num_requests = len(server.requests)
    assert run(spec)[0] == quick
    assert len(server.requests) == num_requests


@HASHES
@pytest.mark.parametrize("validators", [True, False], ids=["validators", "no-validators"])
def test_many_processes_without_locks_all_get_the_file(
    server: Server, cache: Path, sha: str | None, validators: bool
) -> None:
    holds = [Fault(hold=size * MIB) for size in (2, 1, 1, 0)]
    spec = serve(server, *holds, sha=sha, validators=validators)
    with contextlib.ExitStack() as stack:
        processes = []
        for count, _ in enumerate(holds, start=1):
            processes.append(stack.enter_context(start(spec, FETCH_WITHOUT_LOCK)))
            server.wait_for("/x.pth", count)
        server.release.set()
        results = [finish(process) for process in processes]
    for path, errors in results:
        assert path is not None, errors
        assert path.read_bytes() == CONTENT
    assert not parts(cache)


def run_on_terminal(spec: ModelSpec, script: str) -> str:
    """What a process writes to a terminal as its stderr."""
    terminal, process_end = pty.openpty()
    fcntl.ioctl(process_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", script, spec.to_json()],
        stdout=subprocess.DEVNULL,
        stderr=process_end,
    ) as process:
        os.close(process_end)
        output = b""
        try:
            while piece := os.read(terminal, 4096):
                output += piece
        except OSError:  # the other end is closed
            pass
        finally:
            os.close(terminal)
    assert process.returncode == 0, output
    return output.decode()


def test_a_terminal_gets_a_progress_bar(server: Server) -> None:
    output = run_on_terminal(serve(server), FETCH)
    assert "x.pth: 100%|" in output
    assert "6.29M/6.29M" in output


def test_progress_false_draws_no_bar_on_a_terminal(server: Server) -> None:
    output = run_on_terminal(
        serve(server), FETCH.replace("sys.argv[1])", "sys.argv[1]), progress=False")
    )
    assert "are licensed" in output
    assert "%|" not in output


def test_a_pipe_gets_no_progress_bar(server: Server) -> None:
    spec = serve(server, sha=sha256(CONTENT))
    _, errors = run(spec)
    assert (
        errors
        == f"vit_nano_hashtags: the weights are licensed Apache-2.0, see {spec.license_url}\n"
    )
    assert run(spec)[1] == ""


@pytest.mark.slow
def test_a_model_of_full_size_survives_a_killed_download(
    server: Server, cache: Path, tmp_path: Path
) -> None:
    layouts = json.loads((Path(__file__).parents[1] / "golden" / "layouts.json").read_text())
    state = {key: torch.randn(shape) for key, (_, shape) in layouts["vit_b16"]["tensors"].items()}
    file = tmp_path / "vit_b16.torch"
    torch.save(state, file)
    assert file.stat().st_size > 300 * MIB
    url = server.put("/vit_b16.torch", file, Fault(hold=200 * MIB))
    spec = replace(get_spec("vit_b16"), sources=(Source(url, "swag", sha256(file)),))
    size = kill_after(spec, cache, 150 * MIB)
    model = load_model(spec)
    assert server.list_start_bytes("/vit_b16.torch") == [None, size]
    loaded = model.state_dict()
    expected = translate_layout(state, "timm")
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.num_params

    start_time = time.perf_counter()
    path = fetch_weights(spec)
    assert time.perf_counter() - start_time < 0.1, "a verified file is not hashed again"
    assert [check.ok for check in verify_weights(spec)] == [True]
    status = path.stat()
    with path.open("r+b") as changed:
        changed.seek(status.st_size // 2)
        byte = changed.read(1)[0]
        changed.seek(-1, os.SEEK_CUR)
        changed.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [check.ok for check in verify_weights(spec)] == [False]
