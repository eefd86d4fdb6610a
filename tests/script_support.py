"""Run scripts that use atomic files and resumable work in their own process."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMPORTS = """import os
from pathlib import Path
from swag_models.atomic import *
from swag_models.resumable import *
"""


@contextmanager
def start(code: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a script in `folder` in its own process, up to the first line it prints."""
    command = [sys.executable, "-u", "-c", IMPORTS + textwrap.dedent(code)]
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
    command = [sys.executable, "-c", IMPORTS + textwrap.dedent(code)]
    done = subprocess.run(command, cwd=folder, check=False)
    assert done.returncode == -signal.SIGKILL
