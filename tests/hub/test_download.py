"""Downloads from a faulty server end with the right bytes or an error of one line."""

from __future__ import annotations

import re
import shutil
import time
import uuid
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path

import pytest
from certificates import make_certificates
from fetch_support import MIB, isolate, list_files, make_bytes, small_disk
from server import MODIFIED, Fault, Proxy, ServedFile, Server, sha256

from swag_models.errors import CacheError, FetchError, HashMismatchError
from swag_models.hub import download as download_module
from swag_models.hub.download import download
from swag_models.hub.part_file import PartFile, remove_parts

BIG = make_bytes(4 * MIB + 12345)  # several chunks, the last one incomplete
OTHER = make_bytes(4 * MIB + 12345, seed=1)
SMALL = make_bytes(5000)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of part files."""
    return isolate(tmp_path, monkeypatch) / "parts"


def get(url: str, folder: Path, content: bytes | None = None) -> bytes:
    """Download a URL, expecting the hash of `content`; checks the returned hash."""
    path, digest = download(
        url, folder, key="key", sha256=None if content is None else sha256(content)
    )
    assert path.parent == folder
    assert digest == sha256(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The part file of a download of BIG that was interrupted."""
    folder = tmp_path_factory.mktemp("earlier")
    with pytest.MonkeyPatch.context() as monkeypatch, Server() as server:
        isolate(folder, monkeypatch)
        url = server.put("/x.pth", BIG, Fault(cut=3 * MIB), Fault(status=404))
        with pytest.raises(FetchError, match="404"):
            download(url, folder, key="key", sha256=None)
    (part,) = list_files(folder)
    assert 2 * MIB <= part.stat().st_size <= 3 * MIB
    return part


@pytest.fixture
def part(earlier: Path, folder: Path) -> Path:
    """The same part file in the folder of the next download."""
    folder.mkdir(parents=True)
    return Path(shutil.copy(earlier, folder))


def pauses(server: Server) -> list[float]:
    """Seconds between requests."""
    times = [request.time for request in server.requests]
    return [after - before for before, after in pairwise(times)]


def test_a_download_sends_one_request(server: Server, folder: Path) -> None:
    assert get(server.put("/x.pth", BIG), folder, BIG) == BIG
    assert [(request.method, request.start) for request in server.requests] == [("GET", None)]
    assert server.requests[0].headers["user-agent"] == "swag_models"


@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut=3 * MIB),
        Fault(cut=0),
        Fault(cut=3 * MIB, reset=True),
        Fault(cut=3 * MIB, chunked=True),
        Fault(longer=100),
        Fault(status=503),
        Fault(status=429),
    ],
    ids=["cut", "cut-at-once", "reset", "cut-chunked", "length-too-large", "503", "429"],
)
def test_one_failure_is_retried(server: Server, folder: Path, fault: Fault) -> None:
    assert get(server.put("/x.pth", BIG, fault), folder) == BIG
    assert len(server.requests) == 2


def test_an_interrupted_download_resumes_where_it_stopped(server: Server, folder: Path) -> None:
    assert get(server.put("/x.pth", BIG, Fault(cut=3 * MIB + 1000)), folder) == BIG
    second = server.list_requests("/x.pth")[1]
    assert second.start is not None
    assert 3 * MIB <= second.start <= 3 * MIB + 1000
    assert second.headers["if-range"] == f'"{sha256(BIG)[:20]}"'


def test_any_progress_resets_the_number_of_failures(server: Server, folder: Path) -> None:
    content = make_bytes(3 * MIB)
    assert get(server.put("/x.pth", content, *[Fault(cut=MIB // 2)] * 5), folder) == content
    starts = [request.start or 0 for request in server.list_requests("/x.pth")]
    assert starts == sorted(set(starts))


def test_a_part_of_an_earlier_download_is_resumed(server: Server, folder: Path, part: Path) -> None:
    size = part.stat().st_size
    assert get(server.put("/x.pth", BIG), folder, BIG) == BIG
    assert server.list_start_bytes("/x.pth") == [size]


def test_a_complete_part_is_not_downloaded_again(server: Server, folder: Path, part: Path) -> None:
    part.write_bytes(BIG)
    assert get(server.put("/x.pth", BIG), folder, BIG) == BIG
    assert server.list_start_bytes("/x.pth") == [len(BIG)]


def test_a_part_of_another_key_is_left_alone(server: Server, folder: Path, part: Path) -> None:
    part = part.rename(part.with_name(part.name.replace("key.", "yek.", 1)))
    assert get(server.put("/x.pth", BIG), folder) == BIG
    assert server.list_start_bytes("/x.pth") == [None]
    assert part.exists()


def test_a_corrupted_part_is_downloaded_again_from_the_start(
    server: Server, folder: Path, part: Path
) -> None:
    size = part.stat().st_size
    part.write_bytes(bytes(size))
    assert get(server.put("/x.pth", BIG), folder, BIG) == BIG
    assert server.list_start_bytes("/x.pth") == [size, None]


def test_a_changed_file_is_downloaded_from_the_start(
    server: Server, folder: Path, part: Path
) -> None:
    assert get(server.put("/x.pth", OTHER), folder) == OTHER
    assert len(server.requests) == 1
    assert not part.exists()


def test_a_file_that_changes_during_the_download_is_downloaded_from_the_start(
    server: Server, folder: Path
) -> None:
    old = ServedFile(BIG, '"old"', MODIFIED)
    assert get(server.put("/x.pth", OTHER, Fault(served=old, cut=3 * MIB)), folder) == OTHER
    assert server.list_requests("/x.pth")[1].headers["if-range"] == '"old"'


def test_versions_are_not_mixed_by_a_server_that_ignores_if_range(
    server: Server, folder: Path
) -> None:
    old = ServedFile(BIG, '"old"', None)
    url = server.put("/x.pth", OTHER, Fault(served=old, cut=3 * MIB), Fault(ignore_if_range=True))
    assert get(url, folder) == OTHER


def test_a_server_that_ignores_range_sends_everything_again(server: Server, folder: Path) -> None:
    url = server.put("/x.pth", BIG, Fault(cut=3 * MIB), Fault(ignore_range=True))
    assert get(url, folder, BIG) == BIG
    assert [start is None for start in server.list_start_bytes("/x.pth")] == [True, False]


@pytest.mark.parametrize("span", ["bytes 7-4206648/4206649", "bytes 0-9/10", "nonsense"])
def test_a_wrong_content_range_restarts_the_download(
    server: Server, folder: Path, part: Path, span: str
) -> None:
    url = server.put("/x.pth", BIG, Fault(headers={"Content-Range": span}))
    size = part.stat().st_size
    assert get(url, folder) == BIG
    assert server.list_start_bytes("/x.pth") == [size, None]


def test_without_validators_a_download_starts_over(server: Server, folder: Path) -> None:
    assert get(server.put("/x.pth", BIG, Fault(cut=3 * MIB), validators=False), folder, BIG) == BIG
    assert server.list_start_bytes("/x.pth") == [None, None]


def test_a_weak_etag_is_not_sent_as_if_range(server: Server, folder: Path) -> None:
    assert get(server.put("/x.pth", BIG, Fault(cut=3 * MIB), weak=True), folder) == BIG
    assert server.list_requests("/x.pth")[1].headers["if-range"] == MODIFIED


def test_without_content_length_the_body_is_taken_as_complete(server: Server, folder: Path) -> None:
    assert get(server.put("/x.pth", BIG, Fault(chunked=True)), folder) == BIG
    assert len(server.requests) == 1


def test_a_wrong_hash_is_an_error_with_both_hashes_and_leaves_no_file(
    server: Server, folder: Path
) -> None:
    with pytest.raises(HashMismatchError) as caught:
        get(server.put("/x.pth", OTHER), folder, BIG)
    assert str(caught.value) == f"SHA-256 is {sha256(OTHER)}, not {sha256(BIG)}"
    assert len(server.requests) == 1
    assert not list_files(folder)


def test_leading_digits_of_a_hash_are_enough(server: Server, folder: Path) -> None:
    url = server.put("/x.pth", SMALL)
    path, digest = download(url, folder, key="key", sha256=sha256(SMALL)[:8])
    assert (path.read_bytes(), digest) == (SMALL, sha256(SMALL))
    with pytest.raises(HashMismatchError):
        download(url, folder, key="other", sha256="0" + sha256(SMALL)[:7])


def test_a_content_length_too_small_is_a_hash_mismatch(server: Server, folder: Path) -> None:
    with pytest.raises(HashMismatchError, match=sha256(SMALL[:-100])):
        get(server.put("/x.pth", SMALL, Fault(longer=-100)), folder, SMALL)


def test_a_damaged_part_of_an_earlier_process_is_downloaded_again(
    server: Server, folder: Path, part: Path
) -> None:
    url = server.put("/x.pth", BIG)
    for size in (len(BIG), len(BIG) // 2, 1):
        part.write_bytes(bytes(size))
        assert get(url, folder, BIG) == BIG
        part.parent.mkdir(exist_ok=True)


def test_404_is_not_retried(server: Server, folder: Path) -> None:
    with pytest.raises(FetchError, match=r"^HTTP 404 Not Found$"):
        get(server.url + "/missing", folder)
    assert len(server.requests) == 1


def test_retries_end_when_no_more_bytes_arrive(server: Server, folder: Path, part: Path) -> None:
    size = part.stat().st_size
    url = server.put("/x.pth", BIG, *[Fault(status=503, headers={"Retry-After": "0"})] * 99)
    with pytest.raises(
        FetchError, match=rf"^HTTP 503, {download_module.MAX_ATTEMPTS} times in a row$"
    ):
        get(url, folder)
    assert server.list_start_bytes("/x.pth") == [size] * download_module.MAX_ATTEMPTS
    assert [path.stat().st_size for path in list_files(folder)] == [size], (
        "the part is kept for the next download"
    )


def test_an_unreachable_host_fails_within_seconds(folder: Path) -> None:
    with Server() as server:  # stopped at once
        pass
    start_time = time.monotonic()
    with pytest.raises(FetchError, match="refused") as caught:
        get(server.url + "/x.pth", folder)
    assert time.monotonic() - start_time < 5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("as_date", [False, True], ids=["seconds", "date"])
def test_retry_after_is_respected(server: Server, folder: Path, as_date: bool) -> None:
    moment = datetime.now(timezone.utc) + timedelta(seconds=3)
    wait = format_datetime(moment, usegmt=True) if as_date else "2"  # more than the usual wait
    get(server.put("/x.pth", SMALL, Fault(status=429, headers={"Retry-After": wait})), folder)
    (pause,) = pauses(server)
    assert 1.5 < pause < 6


@pytest.mark.parametrize("wait", ["0", "Thu, 20 Jan 2022 00:00:00 GMT"])
def test_retry_after_in_the_past_means_no_wait(server: Server, folder: Path, wait: str) -> None:
    get(server.put("/x.pth", SMALL, Fault(status=503, headers={"Retry-After": wait})), folder)
    assert pauses(server)[0] < 0.45  # less than the usual wait


@pytest.mark.parametrize("wait", ["soon", "-1", "Thu, 20 Jan 99999 00:00:00 GMT"])
def test_an_invalid_retry_after_is_ignored(server: Server, folder: Path, wait: str) -> None:
    url = server.put("/x.pth", SMALL, Fault(status=503, headers={"Retry-After": wait}))
    assert get(url, folder) == SMALL


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_long_retry_after_is_an_error(server: Server, folder: Path, form: str) -> None:
    date = format_datetime(datetime.now(timezone.utc) + timedelta(hours=1), usegmt=True)
    wait = {"seconds": "3600", "date": date}[form]
    with pytest.raises(FetchError, match=r"^HTTP 429, and the server asks to wait 3[56]\d\d s$"):
        get(server.put("/x.pth", SMALL, Fault(status=429, headers={"Retry-After": wait})), folder)
    assert len(server.requests) == 1


def test_a_part_that_cannot_be_read_does_not_stop_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "key.a.x.part" / "inner").mkdir(parents=True)
    (folder / "key.b.y.part").write_bytes(b"11")
    listed = [folder / "key.0.z.part", *folder.iterdir()]  # another process removes the first
    monkeypatch.setattr(Path, "glob", lambda *_: listed)
    part = PartFile(folder, "key")
    part.claim()
    assert (part.validator, part.size, part.num_responses) == ("y", 2, 2)
    assert len(list(folder.iterdir())) == 2, "no file is left for the one that cannot be read"


def test_validators_are_part_of_the_file_name_up_to_149_characters(folder: Path) -> None:
    folder.mkdir(parents=True)
    for length, kept in ((149, True), (150, False)):
        part = PartFile(folder, "key")
        part.start("a" * length)
        assert part.validator == ("a" * length if kept else "")
        assert part.path.name.endswith(f".{part.validator}.part")
        assert part.path.read_bytes() == b""


def test_the_longest_part_whose_version_is_known_is_resumed(folder: Path) -> None:
    folder.mkdir(parents=True)
    part = PartFile(folder, "key")
    for name, size in {"a.": 9, "b.x": 2, "c.y": 5, "d.z": 0}.items():
        (folder / f"key.{name}.part").write_bytes(b"1" * size)
    for validator, size in (("y", 5), ("x", 2)):
        part.claim()
        assert (part.validator, part.size, part.num_responses) == (validator, size, 2)
        assert part.digest.hexdigest() == sha256(b"1" * size)
        part.discard()
        assert (part.validator, part.size, part.num_responses) == ("", 0, 0)
    part.claim()
    assert (part.validator, part.size, part.num_responses) == ("", 0, 0)
    assert {path.name for path in folder.iterdir()} == {"key.a..part", "key.d.z.part"}


def test_two_processes_never_write_to_one_new_part(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(parents=True)
    one = uuid.UUID(int=1)
    monkeypatch.setattr(uuid, "uuid4", lambda: one)
    PartFile(folder, "key").start("v")
    with pytest.raises(FileExistsError):
        PartFile(folder, "key").start("v")


def test_all_parts_of_a_key_are_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    for name in ("key.a..part", "key.b.%22v%22.part", "yek.a..part", "key.txt"):
        (folder / name).touch()
    remove_parts(folder, "key")
    assert {path.name for path in folder.iterdir()} == {"yek.a..part", "key.txt"}
    # Another process removes one between listing and removing.
    monkeypatch.setattr(Path, "glob", lambda folder, _: [folder / "gone", folder / "yek.a..part"])
    remove_parts(folder, "key")
    assert [path.name for path in folder.iterdir()] == ["key.txt"]


def test_the_limits_are_the_documented_ones() -> None:
    connect, silence = download_module.TIMEOUT
    documented = (Path(__file__).parents[2] / "docs" / "weights.md").read_text("utf-8")
    table = documented[documented.index("| limit | value |") :].split("\n\n")[0]
    numbers = [
        re.findall(r"[0-9][0-9,.]*", row.rsplit("|", 2)[1].replace(",", ""))
        for row in table.splitlines()[2:8]
    ]
    assert [[int(number) for number in row] for row in numbers] == [
        [connect, download_module.MAX_CONNECT_ATTEMPTS],
        [silence, download_module.MAX_ATTEMPTS],
        [connect + silence],
        [download_module.MIN_RATE, silence, download_module.MAX_CONNECT_ATTEMPTS],
        [download_module.MAX_DURATION / 3600],
        [download_module.MAX_WAIT],
    ]


@pytest.mark.parametrize(
    "url",
    [
        "http://example.invalid/x",
        "ftp://localhost/x",
        "http://127.0.0.1.example.invalid/x",
        "x.pth",
    ],
)
def test_only_https_and_loopback_are_allowed(folder: Path, url: str) -> None:
    with pytest.raises(FetchError, match="is not allowed: use https"):
        get(url, folder)


def test_redirects_are_followed_when_resuming(server: Server, folder: Path) -> None:
    server.put("/y.pth", BIG, Fault(cut=3 * MIB))
    redirect = Fault(status=302, headers={"Location": "/y.pth"})
    assert get(server.put("/x.pth", b"", redirect, redirect), folder, BIG) == BIG
    assert [start is None for start in server.list_start_bytes("/y.pth")] == [True, False]


@pytest.mark.parametrize(
    "target", ["http://example.invalid/y", "//example.invalid/y", "ftp://localhost/y"]
)
def test_a_redirect_to_plain_http_is_rejected(server: Server, folder: Path, target: str) -> None:
    with pytest.raises(FetchError, match=r"^a redirect to (http|ftp)://.*/y is not allowed"):
        get(server.put("/x.pth", b"", Fault(status=302, headers={"Location": target})), folder)


def test_a_redirect_to_https_is_followed(
    tmp_path: Path, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, certificate = make_certificates(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    with Server(certificate) as secure:
        redirect = Fault(status=302, headers={"Location": secure.put("/y.pth", SMALL)})
        assert get(server.put("/x.pth", b"", redirect), folder) == SMALL


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_redirect_from_https_to_plain_http_is_rejected_even_on_loopback(
    tmp_path: Path, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    authority, certificate = make_certificates(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    target = server.put("/y.pth", SMALL).replace("127.0.0.1", host)
    with Server(certificate) as secure:
        url = secure.put("/x.pth", b"", Fault(status=302, headers={"Location": target}))
        with pytest.raises(FetchError, match=r"^a redirect to http://.* must stay on https$"):
            get(url, folder)
    assert not server.requests


def test_circular_redirects_are_an_error(server: Server, folder: Path) -> None:
    redirect = Fault(status=302, headers={"Location": "/x.pth"})
    with pytest.raises(FetchError, match="redirects"):
        get(server.put("/x.pth", b"", *[redirect] * 99), folder)


def test_the_environments_proxy_is_used(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.put("/x.pth", BIG)
    with Proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert get(url, folder, BIG) == BIG
        assert [request.path for request in proxy.requests] == [url]
    assert [request.headers["via"] for request in server.requests] == ["1.1 test"]


@pytest.mark.parametrize(
    "fault",
    [Fault(), Fault(cut=3 * MIB), Fault(cut=3 * MIB, reset=True)],
    ids=["whole", "cut", "reset"],
)
def test_a_private_certificate_authority_is_accepted(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    authority, certificate = make_certificates(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    with Server(certificate) as server:
        assert get(server.put("/x.pth", BIG, fault), folder, BIG) == BIG


def test_an_unknown_certificate_authority_is_an_error_with_the_fix(
    tmp_path: Path, folder: Path
) -> None:
    with Server(make_certificates(tmp_path)[1]) as server:
        url = server.put("/x.pth", SMALL)
        with pytest.raises(
            FetchError, match=r"^TLS: .*certificate verify failed.*set REQUESTS_CA_BUNDLE$"
        ):
            get(url, folder)
        assert not server.requests


def test_a_missing_certificate_file_is_not_a_cache_error(
    tmp_path: Path, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    with pytest.raises(FetchError, match=r"missing\.pem") as caught:
        get("https://127.0.0.1:1/x.pth", folder)
    assert not isinstance(caught.value, CacheError)


def test_a_folder_that_cannot_be_created_is_a_cache_error(server: Server, folder: Path) -> None:
    folder.parent.write_text("a file where the cache should be")
    with pytest.raises(CacheError, match="set SWAG_MODELS_CACHE to another folder"):
        get(server.put("/x.pth", SMALL), folder)


def test_a_file_larger_than_the_free_space_is_not_downloaded(
    server: Server, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        url = server.put("/x.pth", BIG)
        with pytest.raises(CacheError, match=r"needs 4 MiB more and has 1 MiB free"):
            get(url, disk)
        assert not list_files(disk)
