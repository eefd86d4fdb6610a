"""The client of the Hugging Face Hub: its settings, time limits, and errors in one line.

Imports no torch. The client is imported inside functions, because importing it takes longer than
the rest of `swag_models.hub` together.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from swag_models.errors import FetchError, SwagModelsError
from swag_models.hub.download import MAX_DURATION, MIN_RATE, TIMEOUT
from swag_models.hub.environment import explain_tls, find_ca_bundle
from swag_models.hub.hub_errors import UnreachableError, client_errors, convert_error, list_causes
from swag_models.hub.hub_rules import check_request, check_response, request_hooks
from swag_models.hub.progress import choose_bar
from swag_models.hub.time_limit import call_within
from swag_models.spec import Progress

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")

# Seconds in which the Hub must answer: the first try, which fails if an open connection has died,
# and both tries. HF_HUB_ETAG_TIMEOUT, a variable of the client, sets those of each try.
FIRST_TRY_SECONDS, TOTAL_SECONDS = 0.5, 1.7
PAUSE_SECONDS = 0.1  # after a first try that failed at once
CLEANUP_SECONDS = 0.5  # for an abandoned thread to remove its temporary file
MAX_SURPLUS = 2**24  # bytes; the client compares sizes only at the end of a file


class Meter:
    """What the client receives in one thread, and its progress bars count.

    The client waits a limited time for each piece, so that a server can send one byte at a time.

    Args:
        seconds: time over which MIN_RATE is measured.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.bars: set[Any] = set()  # that are open
        self._response: Any = None
        self._num_bytes = 0  # of earlier responses, and in bars
        self._start, self._start_bytes = time.monotonic(), 0

    def make_bar(self, bar_class: "type[tqdm[Any]] | None") -> "type[tqdm[Any]]":
        """A class of progress bars that are counted; they draw nothing if `bar_class` is None."""
        from tqdm import tqdm

        meter = self
        options = {"disable": True} if bar_class is None else {}

        class Bar(bar_class or tqdm):  # type: ignore[misc]
            def __init__(self, *args: Any, name: str = "", **others: Any) -> None:
                super().__init__(*args, **{**others, **options})
                meter.bars.add(self)
                self.num_bytes = 0  # `n` does not count if nothing is drawn

            def update(self, n: float | None = 1) -> Any:
                meter._num_bytes += int(n or 0)
                self.num_bytes += int(n or 0)
                if self.total and self.num_bytes > 2 * self.total + MAX_SURPLUS:
                    raise FetchError(f"the Hub sent more than the stated {self.total} bytes")
                return super().update(n)

            def close(self) -> None:
                meter.bars.discard(self)
                super().close()

        return Bar

    @contextlib.contextmanager
    def observe(self) -> Iterator[None]:
        """Observe the requests of this thread in the `with` block."""
        with request_hooks(request=self._count_request, response=self._count_response):
            yield

    def _count_request(self, request: object) -> None:
        self._num_bytes += getattr(self._response, "num_bytes_downloaded", 0)
        self._response = None

    def _count_response(self, response: Any) -> None:
        self._response = response

    def check(self) -> None:
        """Raise UnreachableError if less than MIN_RATE bytes per second arrive.

        After a successful response, the client may wait for the lock of another process that
        downloads the same file.
        """
        response, now = self._response, time.monotonic()
        received = self._num_bytes + getattr(response, "num_bytes_downloaded", 0)
        elapsed = now - self._start
        status = 0 if response is None else response.status_code
        is_waiting = not self.bars and status and status < 400 and response.is_closed
        if not is_waiting and elapsed < self.seconds:
            return
        if not is_waiting and received - self._start_bytes < MIN_RATE * elapsed:
            slow = f"slower than {MIN_RATE} bytes per second"
            raise UnreachableError(
                f"the Hub cannot be reached ({f'HTTP {status}' if status >= 400 else slow})"
            )
        self._start, self._start_bytes = now, received


def call_client(
    function: Callable[[], T], seconds: float, check: Callable[[], None] = lambda: None
) -> T:
    """Return the result of a function of the client, which has no time limits of its own.

    Args:
        function: what to call, in a thread. If it is abandoned its connections are closed.
        seconds: time limit.
        check: called repeatedly meanwhile; what it raises ends the wait.

    Raises:
        TimeoutError: it took longer.
        BaseException: whatever `function` or `check` raises.
    """
    from huggingface_hub import close_session

    def run() -> T:
        with request_hooks(request=check_request, response=check_response):
            return function()

    try:
        return call_within(run, seconds, check)
    except (TimeoutError, KeyboardInterrupt, UnreachableError):
        close_session()
        raise


def call_with_rate(function: Callable[..., T], progress: Progress) -> T:
    """Return the result of a download by the client; it fails if it is slower than MIN_RATE.

    Args:
        function: what to call; its argument `tqdm_class` is a class of progress bars.
        progress: whether to draw a bar on a terminal, or the tqdm class to draw it with.

    Raises:
        UnreachableError: it is too slow.
        BaseException: whatever `function` raises.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled

    meter = Meter(TIMEOUT[1])
    disabled = are_progress_bars_disabled()  # by a variable or a switch of the client
    bar = meter.make_bar(None if disabled and progress is True else choose_bar(progress))

    ended = threading.Event()

    def run() -> T:
        try:
            with meter.observe():
                return function(tqdm_class=bar)
        finally:
            ended.set()

    try:
        return call_client(run, MAX_DURATION, meter.check)
    except (TimeoutError, KeyboardInterrupt, UnreachableError):
        ended.wait(CLEANUP_SECONDS)
        raise


def remove_empty_parts(repo: str) -> None:
    """Remove empty files of downloads that were abandoned before their first byte.

    The client removes its files itself, but not if the process ends while it still waits. A file
    of another process that waits for its first byte is younger, or about to be abandoned too.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=repo, repo_type="model")
    for path in Path(constants.HF_HUB_CACHE, folder, "blobs").glob("*.incomplete"):
        with contextlib.suppress(OSError):
            status = path.stat()
            if status.st_size == 0 and status.st_mtime < time.time() - TIMEOUT[1] / 2:
                path.unlink()


def try_twice(request: Callable[..., T]) -> T:
    """Return the result of a short request to the Hub, given its `timeout` in seconds.

    The client's own retries take half a minute and log each failure.
    """
    from huggingface_hub import constants

    own_limit = os.environ.get("HF_HUB_ETAG_TIMEOUT")
    first = constants.HF_HUB_ETAG_TIMEOUT if own_limit else FIRST_TRY_SECONDS
    start_time = time.monotonic()
    try:
        return call_client(partial(request, timeout=first), first)
    except client_errors() as error:
        status = getattr(getattr(error, "response", None), "status_code", 500)
        final = isinstance(error, ValueError) or (status < 500 and status != 429)
        if final or explain_tls(list_causes(error)[-1]):
            raise
    if time.monotonic() - start_time < first:
        time.sleep(PAUSE_SECONDS)
    elapsed = time.monotonic() - start_time
    second = first if own_limit else max(TOTAL_SECONDS - elapsed, FIRST_TRY_SECONDS)
    return call_client(partial(request, timeout=second), second)


class _ProcessSettings:
    """Settings of the process that hold while any thread uses the client.

    The client reads certificates from the environment when it opens its session, and its log lines
    would be printed beside the error.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.num_users = 0
        self.level = logging.NOTSET
        self.variables: dict[str, str | None] = {}
        self.session: tuple[str, Any] | None = None  # the last one, and its certificates

    def enter(self, bundle: str | None) -> None:
        """Change the settings, if this is the first user."""
        from huggingface_hub.utils import logging as client_logging  # sets its level

        with self.lock:
            if self.num_users == 0:
                names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
                self.variables = {name: os.environ.get(name) for name in names}
                self.level = client_logging.get_verbosity()
                if self.level == logging.WARNING:  # the default
                    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
                if bundle:
                    values = (None, bundle) if os.path.isdir(bundle) else (bundle, None)
                    _set_environment(dict(zip(names, values)))
            self.num_users += 1

    def open_session(self, bundle: str | None) -> None:
        """Open a session with these certificates, unless the open one has them."""
        from huggingface_hub import close_session, get_session

        with self.lock:
            if bundle and self.session != (bundle, get_session()):
                close_session()
                self.session = bundle, get_session()

    def leave(self) -> None:
        """Restore the settings, if this is the last user."""
        with self.lock:
            self.num_users -= 1
            if self.num_users == 0:
                _set_environment(self.variables)
                logging.getLogger("huggingface_hub").setLevel(self.level)


_process_settings = _ProcessSettings()


@contextlib.contextmanager
def client_session(repo: str) -> Iterator[None]:
    """Run calls of the client with this library's rules for certificates, logs and errors.

    Inside the `with` block the client uses the certificate authorities that `find_ca_bundle`
    finds, and its log lines are hidden.

    Args:
        repo: what messages name.

    Raises:
        UnreachableError: the Hub does not answer, or asks to try later.
        FetchError: any other error of the client.
    """
    try:
        # The client reads its settings when it is imported, and rejects invalid ones.
        bundle = find_ca_bundle()
        _process_settings.enter(bundle)
        try:
            _process_settings.open_session(bundle)
            yield
        finally:
            _process_settings.leave()
    except SwagModelsError:  # must come first: some of ours are OSErrors
        raise
    except client_errors() as error:
        raise convert_error(error, repo) from None


def _set_environment(values: dict[str, str | None]) -> None:
    """Set environment variables; None removes one."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
