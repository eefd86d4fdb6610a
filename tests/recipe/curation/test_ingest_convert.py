"""Text files become Parquet parts: equal for any number of processes, and after interruptions."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fetch_support import small_disk, wait_until

from swag_models.errors import ConfigError, OutputError
from swag_models.recipe.curation.columns import Columns
from swag_models.recipe.curation.ingest import Conversion, convert_posts

ENDINGS = (".parquet", ".rejects.jsonl", ".json")
CONVERT = """
import sys
from pathlib import Path
from swag_models.errors import SwagModelsError
from swag_models.recipe.curation.ingest import convert_posts
if __name__ == "__main__":
    processes, folder, *inputs = sys.argv[1:]
    try:
        convert_posts([*map(Path, inputs)], Path(folder), processes=int(processes), progress=False)
    except SwagModelsError as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


def write_posts(path: Path, count: int, start: int = 0) -> Path:
    """Write `count` rows, every tenth malformed."""
    numbers = range(start, start + count)
    path.write_text(
        "".join(
            json.dumps({"id": n, "tags": [f"t{n % 7}"]}) + "\n" if n % 10 else "{\n"
            for n in numbers
        )
    )
    return path


def write_many(path: Path) -> Path:
    """Write rows whose conversion takes seconds, so that a test can interrupt it."""
    path.write_text('{"id": 1, "tags": ["bear", "brown bear"]}\n' * 400_000)
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    (tmp_path / "c.csv").write_text("key,caption,url,md5\n1,#bear #bear,http://x,ff\n2\n")
    return [
        write_posts(tmp_path / "a.jsonl", 100),
        write_posts(tmp_path / "b.jsonl", 40, 100),
        tmp_path / "c.csv",
    ]


def convert(inputs: list[Path], folder: Path, **options: Any) -> Conversion:
    return convert_posts(inputs, folder, **{"progress": False, "processes": 1, **options})


def read_content(folder: Path) -> dict[str, bytes]:
    """The files that must not depend on processes and interruptions."""
    return {  # the records contain the times of the other files
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name != ".lock" and path.suffix != ".json"
    }


@pytest.mark.parametrize("suffix", [".gz", ".bz2"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_compressed_file_that_is_cut_off_is_named(
    suffix: str, processes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compress = {".gz": gzip.compress, ".bz2": bz2.compress}[suffix]
    rows = b"".join(b'{"id": %d, "tags": ["dog"], "x": "%x"}\n' % (n, n**50) for n in range(30_000))
    content = compress(rows)
    inputs = [tmp_path / f"cut.jsonl{suffix}", tmp_path / f"whole.jsonl{suffix}"]
    inputs[0].write_bytes(content[: len(content) // 2])
    inputs[1].write_bytes(content)
    conversion = convert(inputs, tmp_path / "parts", processes=processes)
    assert conversion.rejects == {"unreadable from here on": 1}
    assert 30_000 < conversion.rows < 60_000
    (message,) = caplog.messages
    start = f"{inputs[0]} is damaged or cut off after row {conversion.rows - 30_000} ("
    assert message.startswith(start)
    assert message.endswith("the rest of it is left out; replace the file and run again")


def start(folder: Path, *inputs: Path, processes: int = 1) -> subprocess.Popen[str]:
    """Start a conversion in a new session."""
    command = [sys.executable, "-c", CONVERT, str(processes), str(folder), *map(str, inputs)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def count_members(session: int) -> int:
    """Number of running processes of a session."""
    stats = [
        path.read_text().rpartition(")")[2].split()
        for path in Path("/proc").glob("[0-9]*/stat")
        if path.exists()
    ]
    return sum(int(fields[3]) == session and fields[0] != "Z" for fields in stats)


def test_inputs_become_parts_and_rejects(inputs: list[Path], tmp_path: Path) -> None:
    done = convert(inputs, tmp_path / "out")
    assert done.rows == 90 + 36 + 1
    assert done.rejects == {"not JSON": 14, "wrong number of columns": 1}
    assert [path.name for path in done.parts] == ["00000.parquet", "00001.parquet", "00002.parquet"]
    table = pq.read_table(done.parts[2])
    assert table.schema.types == pq.read_schema(done.parts[0]).types
    assert table.to_pylist() == [
        {"id": "1", "url": "http://x", "hashtags": ["bear", "bear"], "hash": "ff", "license": None}
    ]
    rejects = [
        json.loads(line) for path in done.reject_files for line in path.read_text().splitlines()
    ]
    assert len(rejects) == 15
    reject = {"input": str(inputs[0]), "row": 1, "reason": "not JSON", "text": "{", "value": None}
    assert rejects[0] == reject


def test_an_input_without_posts_is_an_empty_part(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    done = convert([tmp_path / "a.jsonl"], tmp_path / "out")
    assert (done.rows, done.rejects, done.reject_files) == (0, {}, [])
    assert pq.read_table(done.parts[0]).column_names == ["id", "url", "hashtags", "hash", "license"]


def test_several_processes_write_the_same_bytes_as_one(inputs: list[Path], tmp_path: Path) -> None:
    assert convert(inputs, tmp_path / "one") == convert(inputs, tmp_path / "one")
    assert (
        convert(inputs, tmp_path / "two", processes=2).rows
        == convert(inputs, tmp_path / "one").rows
    )
    assert read_content(tmp_path / "one") == read_content(tmp_path / "two")


def test_rows_are_written_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swag_models.recipe.curation.ingest.POSTS_AT_ONCE", 50)
    done = convert([write_posts(tmp_path / "a.jsonl", 170)], tmp_path / "out")
    file = pq.ParquetFile(done.parts[0])
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [
        45,
        45,
        45,
        18,
    ]
    assert done.rejects == {"not JSON": 17}


def test_only_changed_inputs_are_converted_again(inputs: list[Path], tmp_path: Path) -> None:
    def times() -> list[int]:
        return [path.stat().st_mtime_ns for path in convert(inputs, tmp_path / "out").parts]

    first = times()
    assert times() == first
    write_posts(inputs[1], 50, 100)
    second = times()
    assert [a == b for a, b in zip(first, second)] == [True, False, True]
    (tmp_path / "out" / "00000.parquet").write_bytes(b"cut")
    (tmp_path / "out" / "00002.json").unlink()
    assert [a == b for a, b in zip(second, times())] == [False, True, False]


def test_other_columns_convert_the_input_again(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,n,tags\n1,2,x\n")
    for columns, identifier in ((Columns(), "1"), (Columns(id="n"), "2"), (Columns(), "1")):
        done = convert([tmp_path / "a.csv"], tmp_path / "out", columns=columns)
        assert pq.read_table(done.parts[0])["id"].to_pylist() == [identifier]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_conversion_resumes_to_the_same_bytes(processes: int, tmp_path: Path) -> None:
    inputs = [
        write_posts(tmp_path / "a.jsonl", 10),
        *(write_many(tmp_path / f"{i}.jsonl") for i in range(2)),
    ]
    out = tmp_path / "out"
    process = start(out, *inputs, processes=processes)
    wait_until(lambda: (out / "00000.json").exists() and (out / ".00001.parquet.tmp").exists())
    process.kill()
    process.communicate()
    wait_until(lambda: not count_members(process.pid))
    assert not (out / "00001.json").exists()
    modified = (out / "00000.parquet").stat().st_mtime_ns
    for path in inputs[1:]:  # shorter, to save time: the killed process has read more than this
        os.truncate(path, 27_000)
    convert(inputs, out)
    assert (out / "00000.parquet").stat().st_mtime_ns == modified
    convert(inputs, tmp_path / "undisturbed")
    assert read_content(out) == read_content(tmp_path / "undisturbed")


def test_an_interrupt_ends_all_processes(tmp_path: Path) -> None:
    inputs = [write_many(tmp_path / f"{i}.jsonl") for i in range(2)]
    process = start(tmp_path / "out", *inputs, processes=2)
    wait_until(lambda: len([*(tmp_path / "out").glob(".*.tmp")]) == 4)
    os.killpg(process.pid, signal.SIGINT)
    message = process.communicate()[1]
    assert message.count("Traceback") == 1, "worker processes print nothing"
    assert message.rstrip().endswith("KeyboardInterrupt")
    wait_until(lambda: not count_members(process.pid))


@pytest.mark.slow
def test_a_killed_worker_is_reported(tmp_path: Path) -> None:
    inputs = [write_many(tmp_path / f"{i}.jsonl") for i in range(2)]
    process = start(tmp_path / "out", *inputs, processes=2)
    wait_until(lambda: len([*(tmp_path / "out").glob(".*.tmp")]) == 4)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [
        child for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()
    ]
    os.kill(int(workers[0]), signal.SIGKILL)
    assert process.communicate()[1] == (
        "OutputError: a process was killed, perhaps for lack of memory, or could not start "
        "because a script lacks `if __name__ == '__main__':`; rerun to resume\n"
    )
    wait_until(lambda: not count_members(process.pid))


def test_two_processes_cannot_convert_into_the_same_folder(tmp_path: Path) -> None:
    path = write_many(tmp_path / "a.jsonl")
    process = start(tmp_path / "out", path)
    wait_until((tmp_path / "out" / ".00000.parquet.tmp").exists)
    with pytest.raises(
        ConfigError,
        match=r"another process is writing .*out; wait for it, or choose another output",
    ):
        convert([path], tmp_path / "out")
    process.kill()
    process.communicate()


@pytest.mark.parametrize("processes", [1, 2])
def test_an_unreadable_input_is_reported_in_one_line(
    processes: int, inputs: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl cannot be read: No such file"):
        convert([*inputs, tmp_path / "none.jsonl"], tmp_path / "out", processes=processes)
    (tmp_path / "bad.csv").write_text("a,b\n")
    with pytest.raises(ConfigError, match=r"bad\.csv has no column of ids and none .*: a, b"):
        convert([*inputs, tmp_path / "bad.csv"], tmp_path / "out", processes=processes)
    with pytest.raises(ConfigError, match=r"unknown format of .*posts\.xyz"):
        convert([tmp_path / "posts.xyz"], tmp_path / "out")
    with pytest.raises(ConfigError, match="invalid processes 0: allowed: 1 or more"):
        convert(inputs, tmp_path / "out", processes=0)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_unwritable_folder_is_reported(
    processes: int, inputs: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/out cannot be written: Not a directory$"):
        convert(inputs, tmp_path / "file" / "out", processes=processes)
    (tmp_path / "out" / "00000.parquet").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"out cannot be written: Is a directory"):
        convert(inputs, tmp_path / "out", processes=processes)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_leaves_no_incomplete_part(processes: int, tmp_path: Path) -> None:
    generator = random.Random(0)
    inputs = [write_posts(tmp_path / "a.jsonl", 10), tmp_path / "b.jsonl"]
    inputs[1].write_text(
        "".join(
            json.dumps({"id": generator.randbytes(16).hex(), "tags": []}) + "\n"
            for _ in range(10_000)
        )
    )
    with small_disk(tmp_path / "disk", 0.1) as disk:
        with pytest.raises(
            OutputError,
            match=r"out cannot be written: .*No space left.*; finished work is kept: rerun",
        ):
            convert(inputs, disk / "out", processes=processes)
        assert {path.name for path in (disk / "out").glob("[0-9]*")} <= {
            f"00000{end}" for end in ENDINGS
        }


def test_memory_does_not_grow_with_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swag_models.recipe.curation.ingest.POSTS_AT_ONCE", 1000)
    peaks = []
    for count in (2000, 2000, 20_000):  # the first one also fills caches
        path = write_posts(tmp_path / "a.jsonl", count)
        tracemalloc.start()
        convert([path], tmp_path / "out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.5 * peaks[1], peaks
