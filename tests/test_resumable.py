"""Locked and resumable work, with several processes and killed ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
from script_support import run_until_killed, start

from swag_models.atomic import disk_errors
from swag_models.errors import ConfigError, OutputError
from swag_models.resumable import WorkFolder, output_folder, read_result, run_once


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

    @pytest.mark.parametrize("existed", [False, True])
    def test_work_that_fails_before_it_stores_anything_leaves_nothing(
        self, tmp_path: Path, existed: bool
    ) -> None:
        work = tmp_path / "above" / "work"
        if existed:
            work.mkdir(parents=True)
        with pytest.raises(ValueError, match="stop"), WorkFolder(work):
            raise ValueError("stop")
        assert list(tmp_path.rglob("*")) == ([work.parent, work] if existed else [])

    def test_work_that_fails_keeps_what_it_has_stored(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="stop"), WorkFolder(tmp_path / "work", {"a": 1}):
            raise ValueError("stop")
        assert sorted(os.listdir(tmp_path / "work")) == [".lock", "job.json"]
        with pytest.raises(ConfigError), WorkFolder(tmp_path / "work", {"a": 2}):
            raise AssertionError
        assert sorted(os.listdir(tmp_path / "work")) == [".lock", "job.json"]

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
            (folder / "parts" / "0").write_text("part")
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
            lambda folder: (folder / "rows").write_text("yyy"),
            lambda folder: os.truncate(folder / "rows", 0),
            lambda folder: (folder / "parts" / "0").unlink(),
            lambda folder: (folder / "parts" / "0").write_text("other"),
            lambda folder: (folder / "parts" / "1").write_text("added"),
            lambda folder: shutil.rmtree(folder / "parts"),
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


class TestOutputFolder:
    def test_it_stays_if_the_block_succeeds_or_has_stored_something(self, tmp_path: Path) -> None:
        with output_folder(tmp_path / "a" / "b"):
            pass
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "file").touch()
        with pytest.raises(KeyboardInterrupt), output_folder(tmp_path / "c" / "d" / "e"):
            raise KeyboardInterrupt
        assert sorted(map(str, tmp_path.rglob("*"))) == [
            str(tmp_path / name) for name in ("a", "a/b", "c", "c/file")
        ]

    def test_a_folder_that_existed_stays(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError), output_folder(tmp_path):
            raise ConfigError("no")
        assert tmp_path.is_dir()

    def test_one_that_cannot_be_made_is_a_disk_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with (
            pytest.raises(OutputError, match="cannot be written"),
            output_folder(tmp_path / "file" / "out"),
        ):
            raise AssertionError
