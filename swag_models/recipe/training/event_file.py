"""Event files for TensorBoard, written by this thread.

The thread of torch's `SummaryWriter` reopens the file for every write, and prints a traceback
when the folder is gone.
"""

import os
import socket
import time
from pathlib import Path
from typing import Any

from swag_models.runtime import import_extra


class EventFile:
    """A new event file in a folder.

    Args:
        folder: created if missing.
        purge_step: values of this step and of later ones in older files do not count.

    Raises:
        ConfigError: tensorboard is not installed.
        OSError: the file cannot be created, as all methods.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        writer = import_extra("tensorboard.summary.writer.record_writer")
        self._protocol: Any = import_extra("tensorboard.compat.proto.event_pb2")
        folder.mkdir(parents=True, exist_ok=True)
        # The form of the name that TensorBoard sorts by time.
        now = time.time_ns()
        name = f"events.out.tfevents.{now // 10**9:010}.{socket.gethostname()}.{os.getpid()}.{now}"
        self._records = writer.RecordWriter(open(folder / name, "ab"))  # noqa: SIM115
        self._add(file_version="brain.Event:2")
        start = self._protocol.SessionLog(status=self._protocol.SessionLog.START)
        self._add(step=purge_step, session_log=start)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Write a number of a step."""
        self._add(step=step, summary={"value": [{"tag": name, "simple_value": value}]})

    def flush(self) -> None:
        """Pass everything to the operating system."""
        self._records.flush()

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _add(self, **fields: Any) -> None:
        event = self._protocol.Event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())
