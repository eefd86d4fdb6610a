"""Steps of a curation, which run once."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from swag_models.resumable import run_once

Facts = dict[str, Any]  # JSON values


class StepRunner:
    """Runs steps one after another, and skips those that an earlier run finished.

    A step is skipped only if its own key and the keys of all steps before it are equal.

    Args:
        folder: a `WorkFolder`, for the records of the steps.
        bar: shows the name of the current step.
    """

    def __init__(self, folder: Path, bar: "tqdm[Any]") -> None:
        self.folder = folder
        self.done = 0  # steps of this run, not of earlier ones
        self._bar = bar
        self._chain = ""  # hash of the names and keys of all steps so far

    def run(self, name: str, key: Any, files: Sequence[Path], step: Callable[[], Facts]) -> Facts:
        """Run a step, or return the facts of the run that finished it.

        Args:
            name: name of the step and its record.
            key: JSON values that its result depends on, in addition to earlier steps.
            files: the files and folders that it writes.
            step: does the work.
        """
        self._bar.set_description(name)
        chain = json.dumps([self._chain, name, key], sort_keys=True)
        self._chain = hashlib.sha256(chain.encode()).hexdigest()

        def run_step() -> Facts:
            self.done += 1
            return step()

        facts: Facts = run_once(self.folder / f"{name}.json", self._chain, files, run_step)
        self._bar.update()
        return facts
