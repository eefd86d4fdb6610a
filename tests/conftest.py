"""Fixtures for all tests: fixed seeds, temporary caches, loopback servers, published models."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_hub import Hub
from fetch_support import isolate
from hub_support import READER, WRITER
from server import Server
from tiny import load_tiny

from swag_models.publish import save

# Shells start background jobs with SIGINT ignored, and child processes inherit that: tests that
# interrupt a process would wait forever.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed() -> None:
    # torch.manual_seed would also record a stack trace for each kind of device without a driver,
    # which takes longer than most tests.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(autouse=True)
def _temporary_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWAG_MODELS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _cpu_by_default(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expected results are those of the CPU; only tests of a GPU run on it by default."""
    if torch.cuda.is_available() and "gpu" not in request.keywords:
        monkeypatch.setattr("swag_models.devices.pick_device", lambda: "cpu")


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of weight files on loopback."""
    with Server() as server:
        yield server


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for all caches; the Hub's client uses plain HTTP."""
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    isolate(tmp_path / "caches", monkeypatch)
    return tmp_path / "caches"


@pytest.fixture
def hub(caches: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hugging Face Hub on loopback; the Hub's client is configured to use it."""
    with Hub({WRITER: ("org",), READER: ()}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def token(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that may write to the Hub."""
    monkeypatch.setenv("HF_TOKEN", WRITER)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Published models: two with a single weight file, and one with several."""
    published = {}
    for name, options in {"first": {}, "second": {}, "sharded": {"max_shard_size": 20_000}}.items():
        published[name] = save(
            load_tiny(), tmp_path_factory.mktemp("models") / name, license="mit", **options
        )
    return published


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread for torch, in subprocesses too.

    Small models are as fast with one thread, and on a busy machine threads wait for each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)
