"""Atomic files, and locked and resumable work, with several processes and killed ones."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from swag_models.atomic import (
    WorkFolder,
    atomic_write,
    disk_errors,
    read_result,
    run_once,
    temporary_folder,
    write_json,
    write_text,
)
from swag_models.errors import ConfigError, FetchError, OutputError


@contextmanager
def start(code: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a script in `folder` in its own process, up to the first line it prints."""
    script = "import os\nfrom pathlib import Path\nfrom swag_models.atomic import *\n"
    command = [sys.executable, "-u", "-c", script + textwrap.dedent(code)]
    with subprocess.Popen(
        command, cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def run_until_killed(code: str, folder: Path) -> None:
    """Run a script in `folder` that kills its own process."""
    script = "import os\nfrom pathlib import Path\nfrom swag_models.atomic import *\n"
    command = [sys.executable, "-c", script + textwrap.dedent(code)]
    done = subprocess.run(command, cwd=folder, check=False)
    assert done.returncode == -signal.SIGKILL


class TestAtomicWrite:
    def test_the_file_appears_when_the_block_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old")
        with atomic_write(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
        assert path.read_text() == "new"
        assert os.listdir(tmp_path) == ["file"]

    def test_an_error_leaves_the_old_file_and_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old")
        with pytest.raises(TypeError), atomic_write(path) as temporary, temporary.open("w") as file:
            file.writelines(["new", 1])  # type: ignore[list-item]
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["file"]

    def test_an_error_before_anything_is_written_is_passed_on(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="stop"), atomic_write(tmp_path / "file"):
            raise ValueError("stop")
        assert os.listdir(tmp_path) == []

    def test_the_next_run_overwrites_what_a_killed_process_left(self, tmp_path: Path) -> None:
        run_until_killed(
            """
            with atomic_write(Path("file")) as temporary:
                temporary.write_text("half")
                os.kill(os.getpid(), 9)
            """,
            tmp_path,
        )
        assert len(os.listdir(tmp_path)) == 1
        assert not (tmp_path / "file").exists()
        with atomic_write(tmp_path / "file") as temporary:
            assert temporary.read_text() == "half"
            temporary.write_text("whole")
        assert os.listdir(tmp_path) == ["file"]

    def test_unique_writers_do_not_share_a_temporary_file(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        with atomic_write(path, unique=True) as first, atomic_write(path, unique=True) as second:
            assert first != second
            first.write_text("first")
            second.write_text("second")
        assert path.read_text() == "first"
        assert os.listdir(tmp_path) == ["file"]


class TestWriteText:
    def test_text_is_utf8_and_the_rest_is_escaped(self, tmp_path: Path) -> None:
        write_text(tmp_path / "file", "é" + os.fsdecode(b"\xff"))
        assert (tmp_path / "file").read_bytes() == "é".encode() + rb"\udcff"

    def test_json_ends_in_a_newline_and_is_indented(self, tmp_path: Path) -> None:
        write_json(tmp_path / "file", {"é": [1]})
        assert (tmp_path / "file").read_text("utf-8") == '{\n  "é": [\n    1\n  ]\n}\n'
        write_json(tmp_path / "file", {"é": [1]}, indent=None, unique=True)
        assert (tmp_path / "file").read_text("utf-8") == '{"é": [1]}\n'

    def test_a_file_name_that_is_not_utf8_survives_json(self, tmp_path: Path) -> None:
        name = os.fsdecode(b"caf\xe9")
        write_json(tmp_path / "file", name)
        assert json.loads((tmp_path / "file").read_text("utf-8")) == name

    def test_a_value_that_is_not_json_leaves_the_old_file(self, tmp_path: Path) -> None:
        write_json(tmp_path / "file", 1)
        with pytest.raises(TypeError):
            write_json(tmp_path / "file", object())
        assert (tmp_path / "file").read_text() == "1\n"


class TestDiskErrors:
    def test_an_os_error_becomes_one_line_that_names_the_output(self) -> None:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with (
            pytest.raises(
                OutputError, match=r"^out cannot be written: No space left on device$"
            ) as caught,
            disk_errors(Path("out")),
        ):
            raise full
        assert caught.value.__suppress_context__

    def test_an_error_without_a_system_message_keeps_its_own(self) -> None:
        match = r"^out cannot be written: odd$"
        with pytest.raises(OutputError, match=match), disk_errors(Path("out")):
            raise OSError("odd")

    def test_resumable_work_says_how_to_resume(self, tmp_path: Path) -> None:
        missing = tmp_path / "missing" / "file"
        match = r"kept: rerun the same command to resume$"
        with pytest.raises(OutputError, match=match), disk_errors(missing, resumable=True):
            missing.write_text("")

    @pytest.mark.parametrize("error", [FetchError("offline"), ConfigError("wrong"), KeyError("x")])
    def test_errors_of_this_library_and_others_pass_unchanged(self, error: Exception) -> None:
        with pytest.raises(type(error)) as caught, disk_errors(Path("out")):
            raise error
        assert caught.value is error


class TestWorkFolder:
    def test_an_equal_job_resumes_and_tuples_equal_lists(self, tmp_path: Path) -> None:
        job = {"inputs": ("a", "b"), "size": 3}
        with WorkFolder(tmp_path / "work", job) as work:
            (work.path / "part").touch()
        with WorkFolder(tmp_path / "work", job) as work:
            assert (work.path / "part").exists()
        assert json.loads(work.record.read_text()) == {"inputs": ["a", "b"], "size": 3}

    @pytest.mark.parametrize(
        ("job", "message"),
        [
            ({"inputs": ["a"], "size": 4}, "out holds other work, with size 3, not 4; "),
            ({"inputs": ["a"]}, "with size 3, not None; "),
            ({"inputs": ["a"], "size": 3, "seed": 1}, "with seed None, not 1; "),
            ({"inputs": ["b" * 99], "size": 3}, rf"not \['{'b' * 75}\.\.\.; delete .*work or "),
        ],
    )
    def test_another_job_is_rejected(self, tmp_path: Path, job: Any, message: str) -> None:
        with WorkFolder(tmp_path / "work", {"inputs": ["a"], "size": 3}) as work:
            pass
        before = work.record.read_text()
        with pytest.raises(ConfigError, match=message) as caught:
            WorkFolder(tmp_path / "work", job, output=tmp_path / "out").__enter__()
        assert "\n" not in str(caught.value)
        assert work.record.read_text() == before
        with WorkFolder(tmp_path / "work"):  # the rejected run has released the lock
            pass

    @pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"job"', b"\xff"])
    def test_a_damaged_record_is_named(self, tmp_path: Path, text: str | bytes) -> None:
        (tmp_path / "job.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ConfigError, match=r"job\.json is damaged; delete .* or choose"):
            WorkFolder(tmp_path, {"size": 3}).__enter__()

    def test_a_job_can_be_claimed_later_by_some_of_its_entries(self, tmp_path: Path) -> None:
        def choose(job: Any) -> dict[str, Any]:
            return {"size": job["size"]}

        with WorkFolder(tmp_path, record="run.json") as work:
            assert not work.record.exists()
            work.claim({"size": 3, "version": 1}, choose)
            work.claim({"size": 3, "version": 2}, choose)
            assert json.loads((tmp_path / "run.json").read_text())["version"] == 2
            with pytest.raises(ConfigError, match="with size 3, not 4"):
                work.claim({"size": 4, "version": 2}, choose)
            work.record.write_text("{}")
            with pytest.raises(ConfigError, match="is damaged"):
                work.claim({"size": 3, "version": 2}, choose)

    def test_one_process_at_a_time(self, tmp_path: Path) -> None:
        code = """
            with WorkFolder(Path("work"), {"size": 3}):
                print("ready")
                input()
        """
        with start(code, tmp_path) as process:
            match = r"^another process is writing out; wait for it, or choose another output$"
            with pytest.raises(ConfigError, match=match):
                WorkFolder(tmp_path / "work", {"size": 3}, output=Path("out")).__enter__()
            process.communicate("\n")
            assert process.returncode == 0
        with WorkFolder(tmp_path / "work", {"size": 3}):
            pass

    def test_a_second_process_can_wait_for_the_first(self, tmp_path: Path) -> None:
        code = """
            print("ready")
            with WorkFolder(Path("work"), {"size": 3}, wait=True):
                print(Path("work/part").read_text())
        """
        with WorkFolder(tmp_path / "work", {"size": 3}) as work, start(code, tmp_path) as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            (work.path / "part").write_text("finished")
            work.__exit__()
            assert process.communicate()[0] == "finished\n"

    def test_a_killed_process_releases_the_folder(self, tmp_path: Path) -> None:
        run_until_killed(
            """
            with WorkFolder(Path("work"), {"size": 3}):
                Path("work/part").touch()
                os.kill(os.getpid(), 9)
            """,
            tmp_path,
        )
        with WorkFolder(tmp_path / "work", {"size": 3}) as work:
            assert (work.path / "part").exists()

    def test_a_folder_that_cannot_be_made_is_a_disk_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with (
            pytest.raises(OutputError, match="cannot be written: Not a directory"),
            disk_errors(tmp_path),
        ):
            WorkFolder(tmp_path / "file" / "work").__enter__()


class TestRunOnce:
    def count(self, folder: Path, key: Any = 1, size: int = 3) -> tuple[Any, int]:
        """Run the work in `folder`; return its result and the number of times it ran."""
        runs = 0

        def make() -> dict[str, Any]:
            nonlocal runs
            runs += 1
            (folder / "rows").write_text("x" * size)
            (folder / "parts").mkdir(exist_ok=True)
            return {"rows": (1, 2), "path": folder}

        files = [folder / "rows", folder / "parts"]
        return run_once(folder / "record.json", key, files, make, default=str), runs

    def test_finished_work_is_skipped_and_gives_the_same_result(self, tmp_path: Path) -> None:
        result = {"rows": [1, 2], "path": str(tmp_path)}
        assert self.count(tmp_path) == (result, 1)
        assert self.count(tmp_path) == (result, 0)

    def test_the_result_of_finished_work_is_read_without_running_it(self, tmp_path: Path) -> None:
        record, files = tmp_path / "record.json", [tmp_path / "rows", tmp_path / "parts"]
        with pytest.raises(LookupError, match=r"record\.json holds no result for this key"):
            read_result(record, 1, files)
        result, _ = self.count(tmp_path)
        assert read_result(record, 1, files) == result
        with pytest.raises(LookupError):
            read_result(record, 2, files)
        (tmp_path / "rows").unlink()
        with pytest.raises(LookupError):
            read_result(record, 1, files)

    def test_another_key_runs_again_and_the_order_of_its_entries_does_not_matter(
        self, tmp_path: Path
    ) -> None:
        assert self.count(tmp_path, {"a": 1, "b": 2})[1] == 1
        assert self.count(tmp_path, {"b": 2, "a": 1})[1] == 0
        assert self.count(tmp_path, {"a": 1, "b": 3})[1] == 1

    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: (folder / "rows").unlink(),
            lambda folder: (folder / "rows").write_text("xx"),
            lambda folder: (folder / "parts").rmdir(),
            lambda folder: (folder / "record.json").unlink(),
            lambda folder: (folder / "record.json").write_text("{"),
            lambda folder: (folder / "record.json").write_text("[]"),
            lambda folder: (folder / "record.json").write_text("{}"),
        ],
    )
    def test_missing_or_damaged_files_run_it_again(self, tmp_path: Path, damage: Any) -> None:
        self.count(tmp_path)
        damage(tmp_path)
        assert self.count(tmp_path)[1] == 1
        assert self.count(tmp_path)[1] == 0

    def test_a_process_killed_between_file_and_record_runs_it_again(self, tmp_path: Path) -> None:
        code = """
            def make():
                Path("rows").write_text("new")
                {kill}
                return {{"rows": {rows}}}

            run_once(Path("record.json"), {key}, [Path("rows")], make)
        """
        kill = "os.kill(os.getpid(), 9)"
        # The first run finishes. The second, with another key, replaces the file by one of equal
        # size and is killed. Its file must then not count as the first run's.
        done = textwrap.dedent(code).format(kill="pass", rows=1, key=1)
        with start(done + "print('ready')", tmp_path) as process:
            process.wait()
        assert json.loads((tmp_path / "record.json").read_text())["result"] == {"rows": 1}
        run_until_killed(textwrap.dedent(code).format(kill=kill, rows=2, key=2), tmp_path)
        assert (tmp_path / "rows").read_text() == "new"
        assert not (tmp_path / "record.json").exists()
        runs: list[int] = []
        for _ in range(2):
            result = run_once(
                tmp_path / "record.json", 1, [tmp_path / "rows"], lambda: runs.append(1) or 3
            )
            assert result == 3
        assert runs == [1]

    def test_an_error_leaves_no_record(self, tmp_path: Path) -> None:
        def fail() -> None:
            raise ValueError("stop")

        self.count(tmp_path)
        with pytest.raises(ValueError, match="stop"):
            run_once(tmp_path / "record.json", 2, [tmp_path / "rows"], fail)
        assert self.count(tmp_path)[1] == 1


class TestLeftovers:
    """Temporary files and folders of killed processes are removed by the next run."""

    @pytest.mark.parametrize("name", ["model.onnx", "x" * 200, "é" * 60])
    def test_those_of_a_killed_process_are_removed(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        child = os.fork()
        if child == 0:
            with atomic_write(path, unique=True) as file, temporary_folder(path) as folder:
                file.write_text("x")
                (folder / "y").write_text("y")
                os._exit(0)  # as if killed: no cleaning up
        os.waitpid(child, 0)
        assert len(os.listdir(tmp_path)) == 2
        with atomic_write(path, unique=True) as temporary:
            temporary.write_text("x")
        assert os.listdir(tmp_path) == [name]

    def test_those_of_running_processes_and_other_files_are_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        with atomic_write(path, unique=True) as ours, atomic_write(path, unique=True) as theirs:
            ours.write_text("ours")
            theirs.write_text("theirs")
            kept = [".file.tmp", ".file.x.tmp", ".other.00000000-1-1.tmp"]
            for name in kept:
                (tmp_path / name).write_text("x")
            write_text(path, "x", unique=True)
            assert ours.exists()
            assert theirs.exists()
        assert sorted(os.listdir(tmp_path)) == sorted([*kept, "file"])

    def test_those_of_another_machine_are_removed_after_a_day(self, tmp_path: Path) -> None:
        old, new = (tmp_path / f".file.0123abcd-7-{number}.tmp" for number in (1, 2))
        for leftover in (old, new):
            leftover.write_text("x")
        os.utime(old, (0, time.time() - 25 * 60 * 60))
        write_text(tmp_path / "file", "x", unique=True)
        assert sorted(os.listdir(tmp_path)) == [new.name, "file"]
