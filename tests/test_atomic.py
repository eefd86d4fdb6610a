"""Atomic files, with several processes and killed ones."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest
from script_support import run_until_killed

from swag_models.atomic import atomic_write, disk_errors, temporary_folder, write_json, write_text
from swag_models.errors import ConfigError, FetchError, OutputError


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
