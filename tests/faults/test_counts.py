"""The harness of the campaigns: outcomes, merged counts, report."""

from pathlib import Path

import pytest
from faults import counts, write_report

from swag_models.errors import ConfigError


def test_judge_names_the_outcome() -> None:
    def fail(error: Exception) -> None:
        raise error

    assert counts.judge(lambda: 3) == "accepted"
    assert counts.judge(lambda: fail(ConfigError("no\nline"))) == "clean"  # escaped by the error
    assert counts.judge(lambda: fail(ConfigError(""))) == "unclear"
    assert counts.judge(lambda: fail(KeyError("a"))) == "other"
    assert counts.judge(lambda: sum(range(1_000_000)), limit_s=0) == "slow"


def test_counts_of_one_run_add_up_and_those_of_an_earlier_run_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts, "FOLDER", tmp_path)
    monkeypatch.setattr(write_report, "FOLDER", tmp_path)
    monkeypatch.setattr(write_report, "REPORT", tmp_path / "reliability.md")
    monkeypatch.setattr(counts, "RUN", "1")
    counts.record("weights", {"clean": 5}, row="zip")
    counts.record("weights", {"other": 1}, row="pickle")
    monkeypatch.setattr(counts, "RUN", "2")
    counts.record("weights", {"clean": 2}, row="zip")
    counts.record("weights", {"clean": 1, "accepted": 4}, row="zip")
    write_report.main()
    text = (tmp_path / "reliability.md").read_text("utf-8")
    assert "## Weights\n" in text
    assert "| input | cases | clean | accepted | other |" in text
    assert "| pickle | 1 | 0 | 0 | 1 |" in text
    assert "| zip | 7 | 3 | 4 | 0 |" in text
    assert "python -m pytest -m faults tests/faults/test_counts.py" in text
