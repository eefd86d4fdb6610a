"""Statistics, result files and the report of benchmarks/run.py."""

import json
from pathlib import Path

import bench_support  # noqa: F401, extends sys.path
import measure
import pytest
import report
import results
from results import Machine, Result, ResultFile, compare

from swag_models.errors import ConfigError

HERE = Machine("EPYC", "AVX-512 bf16", 2, 24)
THERE = Machine("Xeon", "AMX", 2, 32)
SETTINGS = {"source": "abc", "rounds": 4, "clock": "wall"}


def make_result(ours: list[float], theirs: list[float], **changes: object) -> Result:
    wall = {"swag_models": ours, "peer": theirs}
    return Result("work", "Group", "swag_models", 8, "images", wall, settings=SETTINGS, **changes)


class TestStatistics:
    def test_ratios_are_of_medians_and_of_the_fastest_rounds(self) -> None:
        ratio = compare([1.0, 2.0, 3.0, 9.0], [4.0, 4.0, 6.0, 2.0])
        assert ratio.median == 4.0 / 2.5
        assert ratio.fastest == 2.0

    def test_rounds_of_one_ratio_have_an_interval_of_no_width(self) -> None:
        # both were slowed down alike: pairs are drawn together
        ratio = compare([1.0, 1.0, 5.0], [2.0, 2.0, 10.0])
        assert (ratio.low, ratio.median, ratio.high) == (2.0, 2.0, 2.0)

    def test_the_interval_of_a_median_agrees_with_its_binomial_distribution(self) -> None:
        # Ours is constant, so that the interval is that of the median of the numbers 1 to 25. The
        # bootstrap median is at most k with the probability of at least 13 of 25 draws up to k:
        # 0.010 for k = 7, 0.030 for 8, 0.970 for 17, 0.990 for 18.
        ratio = compare([1.0] * 25, [float(number) for number in range(1, 26)])
        assert (ratio.low, ratio.median, ratio.high) == (8.0, 13.0, 18.0)

    def test_a_loss_is_an_interval_below_one(self) -> None:
        assert compare([2.0, 2.1, 2.2], [1.0, 1.1, 1.2]).is_loss
        assert not compare([2.0, 1.0, 2.0], [1.9, 1.9, 0.9]).is_loss

    def test_cpu_time_counts_where_all_ways_have_it(self) -> None:
        cpu = {"swag_models": [1.0], "peer": [3.0]}
        row = make_result([1.0], [2.0], cpu=cpu)
        assert row.clock == "wall"
        row.settings = {**SETTINGS, "clock": "cpu"}
        assert row.clock == "cpu"
        assert row.times("peer") == [3.0]
        del row.cpu["peer"]
        assert row.clock == "wall"
        assert row.times("peer") == [2.0]


class TestMeasure:
    def test_ways_alternate_and_warm_up_does_not_count(self) -> None:
        calls: list[str] = []

        def make(name: str) -> measure.Way:
            return lambda: calls.append(name) or measure.Cost(len(calls))

        times = measure.measure({"a": lambda: make("a"), "b": lambda: make("b")}, 12, pause=0)
        assert calls[:2] == ["a", "b"]
        rounds = ["".join(calls[start : start + 2]) for start in range(2, 26, 2)]
        assert set(rounds) == {"ab", "ba"}  # each way once, and not always in the same order
        for name in "ab":
            turns = [number for number, call in enumerate(calls, 1) if call == name]
            assert times.wall[name] == turns[1:]
        assert times.cpu == {}

    def test_short_calls_are_repeated_and_the_mean_counts(self) -> None:
        counts = {"count": 0}

        def work() -> None:
            counts["count"] += 1
            sum(range(1000))

        times = measure.measure({"a": lambda: work}, 2, min_seconds=0.01)
        assert counts["count"] > 20
        assert all(0 < seconds < 0.01 for seconds in times.wall["a"] + times.cpu["a"])

    def test_a_way_that_fails_is_stated(self) -> None:
        def fail() -> None:
            raise ValueError("first line\nsecond line")

        makers = {"a": lambda: lambda: None, "b": lambda: fail, "c": lambda: __import__("no_such")}
        times = measure.measure(makers, 1, min_seconds=0.001)
        assert list(times.wall) == ["a"]
        assert times.missing == {"b": "ValueError: first line", "c": "no_such is not installed"}

    def test_no_round_starts_after_the_deadline(self) -> None:
        times = measure.measure({"a": lambda: lambda: measure.Cost(1)}, 9, start=lambda: 0.0)
        assert times.wall == {"a": [1]}


class TestFiles:
    def test_results_are_read_as_written(self, tmp_path: Path) -> None:
        path = tmp_path / "here.json"
        row = results.stamp(make_result([1.0], [2.0], missing={"other": "why"}), SETTINGS)
        ResultFile(path, HERE).add("row", row)
        assert results.read_results(path) == (HERE, {"row": row})
        assert row.versions["torch"]
        assert row.date

    def test_a_file_of_another_machine_is_not_overwritten(self, tmp_path: Path) -> None:
        path = tmp_path / "name.json"
        ResultFile(path, HERE).add("row", make_result([1.0], [2.0]))
        before = path.read_bytes()
        with pytest.raises(ConfigError, match=r"another machine \(EPYC, 2 cores.*--machine"):
            ResultFile(path, THERE)
        assert path.read_bytes() == before

    def test_finished_rows_are_kept_only_with_equal_settings(self, tmp_path: Path) -> None:
        file = ResultFile(tmp_path / "here.json", HERE)
        file.add("done", make_result([1.0], [2.0]))
        file.add("failed", make_result([1.0], [2.0], failed="why"))
        again = ResultFile(file.path, HERE)
        assert again.is_done("done", SETTINGS)
        assert not again.is_done("done", {**SETTINGS, "source": "def"})
        assert not again.is_done("done", {**SETTINGS, "rounds": 25})
        assert not again.is_done("failed", SETTINGS)
        assert not again.is_done("missing", SETTINGS)

    def test_machines_have_different_names(self) -> None:
        assert HERE.name == "epyc-avx-512-bf16-2-cores"
        assert THERE.name == "xeon-amx-2-cores"
        assert Machine("EPYC", "", 2, 24, "NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3"


class TestReport:
    def write(self, folder: Path, machine: Machine, **rows: Result) -> None:
        file = ResultFile(folder / f"{machine.name}.json", machine)
        for name, row in rows.items():
            file.add(name, row)

    def find_line(self, folder: Path, label: str) -> list[str]:
        lines = (folder / "RESULTS.md").read_text().splitlines()
        (line,) = (line for line in lines if f"| {label} |" in line)
        return [cell.strip() for cell in line.strip("|").split("|")]

    def test_machines_stand_side_by_side(self, tmp_path: Path) -> None:
        self.write(tmp_path, HERE, row=make_result([1.0] * 3, [2.0] * 3))
        before = report.write_report(tmp_path, tmp_path, [])
        stored = (tmp_path / f"{HERE.name}.json").read_bytes()
        self.write(
            tmp_path, THERE, row=make_result([1.0] * 3, [4.0] * 3), other=make_result([1], [1])
        )
        assert report.write_report(tmp_path, tmp_path, []) == before == []
        assert (tmp_path / f"{HERE.name}.json").read_bytes() == stored
        lines = (tmp_path / "RESULTS.md").read_text().splitlines()
        first, second = (line.split("|") for line in lines if "| peer |" in line)
        assert first[3].strip() == "4 images/s; 2.00 (2.00 to 2.00), fastest 2.00"
        assert first[4].strip() == "2 images/s; 4.00 (4.00 to 4.00), fastest 4.00"
        assert second[3].strip() == "not run"
        assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")

    def test_a_loss_needs_a_cause(self, tmp_path: Path) -> None:
        self.write(tmp_path, HERE, row=make_result([2.0] * 3, [1.0] * 3))
        name = f"row / peer on {HERE.name}"
        assert report.write_report(tmp_path, tmp_path, []) == [name]
        assert self.find_line(tmp_path, "peer")[-1] == report.NO_CAUSE
        elsewhere = report.Cause("row", "slow", machine="xeon*")
        assert report.write_report(tmp_path, tmp_path, [elsewhere]) == [name]
        assert report.write_report(tmp_path, tmp_path, [report.Cause("r*", "copies twice")]) == []
        assert self.find_line(tmp_path, "peer")[-1] == "copies twice"

    def test_a_ratio_below_one_within_the_noise_is_level(self, tmp_path: Path) -> None:
        row = make_result([2.0, 1.0, 2.0, 2.0], [1.9, 1.1, 1.8, 2.4])
        self.write(tmp_path, HERE, row=row)
        assert report.write_report(tmp_path, tmp_path, []) == []
        assert self.find_line(tmp_path, "peer")[-1] == "level"

    def test_other_settings_of_this_library_are_no_peers(self, tmp_path: Path) -> None:
        row = make_result([2.0], [3.0])
        row.wall["swag_models, faster"] = [1.0]
        self.write(tmp_path, HERE, row=row)
        assert report.write_report(tmp_path, tmp_path, []) == []
        assert self.find_line(tmp_path, "swag_models, faster")[-1] == ""
        assert row.peers == ["peer"]

    def test_what_was_not_measured_is_stated(self, tmp_path: Path) -> None:
        missing = make_result([1.0], [2.0], missing={"faiss": "faiss is not installed"})
        failed = Result("work", "Group", "swag_models", failed="out of memory")
        self.write(tmp_path, HERE, missing=missing, failed=failed)
        report.write_report(tmp_path, tmp_path, [])
        assert self.find_line(tmp_path, "faiss")[2] == "not measured: faiss is not installed"
        assert "failed: out of memory" in (tmp_path / "RESULTS.md").read_text()

    def test_the_causes_and_the_committed_report_are_complete(self, tmp_path: Path) -> None:
        causes = report.read_causes()
        assert all(cause.cause for cause in causes)
        machines = report.read_machines(results.RESULTS)
        text, unexplained = report.format_report(machines, causes)
        assert unexplained == []
        committed = results.RESULTS.parent / "RESULTS.md"
        assert not machines or committed.read_text() == text

    def test_one_point_per_peer_and_machine_is_drawn(self, tmp_path: Path) -> None:
        rows = {"row": make_result([1.0] * 3, [2.0] * 3)}
        for machines in ({}, {"a": (HERE, rows)}, {"a": (HERE, rows), "b": (THERE, rows)}):
            report.plot(machines, tmp_path / "plot.png")
            assert (tmp_path / "plot.png").stat().st_size > 1000


def test_stored_files_are_plain_json(tmp_path: Path) -> None:
    ResultFile(tmp_path / "here.json", HERE).add("row", make_result([1.0], [2.0]))
    content = json.loads((tmp_path / "here.json").read_text())
    assert content["machine"]["cpu"] == "EPYC"
    assert content["rows"]["row"]["wall"] == {"swag_models": [1.0], "peer": [2.0]}
