"""The page as its users meet it: the real server, started from the command line, in a real headless Chromium."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from chrome import BROWSER, DRIVER, Chrome, open_chrome, until
from image_support import SCENES, predict_labels
from PIL import Image
from safetensors.torch import save_file
from selenium.webdriver.common.keys import Keys
from server import Fault, Proxy, Server
from tiny import REGNET_SPEC, tiny

from swag_models.spec import Source

ROOT = Path(__file__).parents[2]
PICTURE = os.environ.get(
    "SWAG_MODELS_SCREENSHOT"
)  # docs/app.png, to take the picture in the README again
needs_chromium = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="chromium and chromedriver are not installed"
)
SERVE = """
import signal, sys
from swag_models.app import serve
from swag_models.spec import ModelSpec
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
serve(ModelSpec.from_json(sys.argv[1]), port=0, ready=lambda address: print(address, flush=True))
"""


@contextmanager
def run_server(folder: Path, *command: str, **environment: str) -> Iterator[str]:
    """The address of a page served by another process, which ends by SIGTERM and leaves nothing behind."""
    temporary = folder / "temporary"
    temporary.mkdir()
    inherited = {
        **os.environ,
        "SWAG_MODELS_CACHE": str(folder / "cache"),
        "TMPDIR": str(temporary),
        **environment,
    }
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, env=inherited, cwd=ROOT
    ) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            finally:
                process.kill()  # so that leaving does not wait for it forever
    assert list(temporary.iterdir()) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's pictures: three scenes and a broken file."""
    folder = tmp_path_factory.mktemp("pictures")
    for thing in ("chair", "house", "sailboat"):
        Image.open(SCENES / f"{thing}.jpg").resize((96, 96)).save(folder / f"my {thing} <b>.png")
    (folder / "broken.png").write_bytes((SCENES / "butterfly.jpg").read_bytes()[:60])
    return folder


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    """Sees every request that the server of the page makes to the outside."""
    with Proxy() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def address(folder: Path, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page as `swag-models app` serves it, without network."""
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy.url)
    command = ["-m", "swag_models", "app", "--port", "0", "--folder", str(folder)]
    with run_server(
        tmp_path_factory.mktemp("server"), *command, SWAG_MODELS_OFFLINE="1", **proxies
    ) as address:
        yield address


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with open_chrome(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome


@pytest.fixture
def page(chrome: Chrome, address: str) -> Chrome:
    """The page, freshly opened, in a window of a desktop."""
    chrome.resize(1280, 900)
    chrome.driver.get(address)
    chrome.wait(".facts", "on this machine")
    return chrome


pytestmark = needs_chromium


def test_a_picture_is_named_and_shown_with_what_the_model_looks_at(page: Chrome) -> None:
    page.upload(SCENES / "house.jpg")
    page.wait(".bars li:first-child", name("house"))
    assert len(page.find(".bars li")) == 5
    page.wait("#overlay", "block 4")
    first = overlay(page)
    slider = page.find("input[aria-label='range slider for Block']")[0]
    slider.send_keys(Keys.HOME)
    page.wait("#overlay", "block 1")
    second = until(lambda: overlay(page) if overlay(page) != first else None, "another map")
    page.find("input[aria-label='range slider for Blend']")[0].send_keys(Keys.HOME)
    third = until(lambda: overlay(page) if overlay(page) != second else None, "the picture alone")
    page.choose("Head", "2")
    page.find("input[aria-label='range slider for Blend']")[0].send_keys(Keys.END)
    until(lambda: overlay(page) != third, "the map of one head alone")


def test_the_picture_given_last_is_the_one_shown(page: Chrome) -> None:
    for thing in ("butterfly", "star", "chair", "sailboat"):
        page.upload(SCENES / f"{thing}.jpg")
    page.wait(".bars li:first-child", name("sailboat"))
    until(
        lambda: page.find(".near figure") and "my sailboat" in page.find(".near figure")[0].text,
        "what is similar to the last one",
    )
    page.upload(SCENES / "house.jpg")
    page.wait(".bars li:first-child", name("house"))
    until(
        lambda: "my house" in page.find(".near figure")[0].text, "what is similar to the last one"
    )


def test_an_example_is_there_to_begin_with(page: Chrome) -> None:
    page.wait("#examples button[aria-label='Example 4']").click()
    page.wait(".bars li:first-child", name("chair"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [("cut", "cannot be read: "), ("text", "is not an image that Pillow can read")],
)
def test_a_broken_file_gives_one_line_and_the_page_goes_on(
    page: Chrome, tmp_path: Path, content: str, reason: str
) -> None:
    broken = tmp_path / "my photo.png"
    broken.write_bytes(
        (SCENES / "butterfly.jpg").read_bytes()[:60]
        if content == "cut"
        else b"<script>alert(1)</script>"
    )
    page.upload(SCENES / "house.jpg")
    page.wait(".bars li:first-child", name("house"))
    page.wait("#overlay img")
    page.upload(broken)
    notice = page.wait(".notice[role=alert]", reason).text
    assert notice.startswith("my photo.png")
    assert "\n" not in notice
    until(lambda: not page.find(".bars li, #overlay img, .near figure"), "the last answer to go")
    page.upload(SCENES / "chair.jpg")
    page.wait(".bars li:first-child", name("chair"))
    assert not page.find(".notice")


def test_licence_and_size_are_shown_and_nothing_is_fetched_before_consent(
    page: Chrome, proxy: Proxy
) -> None:
    page.upload(SCENES / "house.jpg")
    page.wait(".bars li:first-child", name("house"))
    page.choose("Model", "vit_b16_in1k_linear")
    page.wait(".facts", "CC-BY-NC-4.0, no commercial use")
    page.wait(".facts", "330 MiB to download")
    page.wait("#bars", "vit_b16_in1k_linear is not on this machine yet")
    page.wait("#fetch", "Accept CC-BY-NC-4.0 and download 330 MiB").click()
    page.wait(
        ".notice",
        "vit_b16_in1k_linear is not on this machine, and SWAG_MODELS_OFFLINE or HF_HUB_OFFLINE forbids",
    )
    page.wait("#fetch")
    page.choose("Model", "vit_nano_hashtags")
    page.wait(".bars li:first-child", name("house"))
    assert not page.find(".notice")
    assert proxy.requests == []


def test_similar_pictures_are_found_in_the_users_folder(page: Chrome, folder: Path) -> None:
    page.upload(SCENES / "sailboat.jpg")
    page.wait(".near figure", "my sailboat <b>.png")
    similarities = [float(figure.text.split()[0]) for figure in page.find(".near figure")]
    assert len(similarities) == 3
    assert page.find(".near figure")[0].text.endswith("my sailboat <b>.png")
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[0] > 0.9
    said = page.wait("#near details", "Left out as unreadable: 1")
    assert "broken.png" in (said.get_attribute("textContent") or "")
    box = page.find("#folder textarea")[0]
    box.clear()
    box.send_keys(str(folder / "nowhere"), Keys.ENTER)
    page.wait(".notice", f"{folder / 'nowhere'} is no folder on this machine")
    box.clear()
    box.send_keys(str(SCENES), Keys.ENTER)
    until(lambda: len(page.find(".near figure")) == 8, "the pictures of the other folder")
    assert not page.find(".notice")


def test_the_page_can_be_used_by_keyboard_alone(page: Chrome) -> None:
    """Every stop of the Tab key has a name and a visible focus; with them a picture is chosen and a block looked at."""
    focus = """
    const each = document.activeElement, style = getComputedStyle(each), label = each.closest('label');
    if (each.dataset.seen) return null;
    if (each !== document.body) each.dataset.seen = 'yes';  // which has it for a moment after a drop-down list
    const name = each.ariaLabel || each.textContent.trim() || label?.textContent.trim() || each.querySelector('img')?.alt;
    return {
      what: each.outerHTML.slice(0, 100),
      name: each === document.body ? 'body' : name || '',
      outline: each === document.body || (style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2)}"""
    stops = []
    page.press(Keys.TAB)
    while (stop := page.run(focus)) and len(stops) < 60:
        stops.append(stop)
        page.press(*[Keys.ENTER] * (stop["name"] == "Example 4"), Keys.TAB)
    assert [stop for stop in stops if not stop["name"] or not stop["outline"]] == []
    names = [stop["name"] for stop in stops]
    expected = ["Example 4", "Model", "range slider for Block", "Head", "Find"]
    assert [name for name in names if name in expected] == expected
    page.wait(".bars li:first-child", name("chair"))


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_a_phone(page: Chrome, dark: bool) -> None:
    page.resize(390, 844, dark)
    page.upload(SCENES / "house.jpg")
    page.wait(".near figure", "my house <b>.png")
    assert page.run("return document.documentElement.scrollWidth") <= 390
    left = page.run(
        "return ['#picture', '#overlay', '#near'].map(each => document.querySelector(each).getBoundingClientRect().left)"
    )
    assert max(left) - min(left) < 20  # one below the other
    background = page.run("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    assert brightness < 60 if dark else brightness > 200


def test_nothing_leaves_the_machine(page: Chrome, address: str, proxy: Proxy) -> None:
    page.read_requests()
    page.driver.get(address)
    page.wait("#examples button[aria-label='Example 8']").click()
    page.wait(".near figure")
    page.wait("#overlay img")
    asked = page.read_requests()
    assert len(asked) > 20
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert proxy.requests == []


def test_only_what_the_page_shows_is_served(page: Chrome, address: str, folder: Path) -> None:
    for path in (folder / "my house <b>.png", ROOT / "setup.cfg", "/etc/hostname"):
        assert ask(f"{address}gradio_api/file={quote(str(path))}")[0] == 403
    config = json.loads(ask(f"{address}config")[1])
    picture, model = (find_component(config, label) for label in ("Picture", "Model"))
    event = next(
        each["id"] for each in config["dependencies"] if each["inputs"][:2] == [picture, model]
    )
    forged = {
        "path": str(folder / "my house <b>.png"),
        "orig_name": "x.png",
        "meta": {"_type": "gradio.FileData"},
    }
    body = {
        "data": [forged, "vit_nano_hashtags", 1, "mean", 0.5],
        "fn_index": event,
        "session_hash": "forger",
    }
    assert ask(f"{address}gradio_api/queue/join", body)[0] == 200
    told = ask(f"{address}gradio_api/queue/data?session_hash=forger")[1]
    assert '"success":false' in told
    assert name("house") not in told


def test_a_foreign_name_for_this_machine_is_refused(address: str) -> None:
    assert ask(address)[0] == 200
    assert ask(address, headers={"Host": "elsewhere.example"})[0] == 400


def test_the_picture_of_the_readme_can_be_taken(page: Chrome, tmp_path: Path) -> None:
    page.resize(1200, 900)
    page.wait("#examples button[aria-label='Example 8']").click()
    box = page.find("#folder textarea")[0]
    box.clear()
    box.send_keys(str(SCENES.relative_to(ROOT)), Keys.ENTER)
    until(lambda: len(page.find(".near figure")) == 8, "the pictures of the folder")
    page.wait("#overlay img")
    path = ROOT / PICTURE if PICTURE else tmp_path / "app.png"
    page.run("document.activeElement.blur()")
    page.photograph(path)
    with Image.open(path) as taken:
        assert taken.width > 1000
        assert len(taken.convert("RGB").resize((50, 50)).getcolors(2500) or []) > 100


@pytest.mark.slow
def test_a_model_is_downloaded_with_progress_stopped_and_continued(
    chrome: Chrome, tmp_path: Path
) -> None:
    """A trunk of a RegNet: it has no bars, but Grad-CAM."""
    model = tiny("regnet", num_classes=None)
    save_file(model.state_dict(), tmp_path / "tiny.safetensors")
    faults = (Fault(status=404), Fault(hold=1 << 17))
    with Server() as server:
        source = Source(
            server.put("/tiny.safetensors", tmp_path / "tiny.safetensors", *faults), "timm"
        )
        spec = replace(
            REGNET_SPEC,
            num_classes=None,
            classes=None,
            metrics=None,
            num_params=130_000,
            sources=(source,),
        )
        with run_server(tmp_path, "-c", SERVE, spec.to_json()) as address:
            chrome.driver.get(address)
            chrome.wait(".facts", "0.496 MiB to download")
            chrome.upload(SCENES / "house.jpg")
            chrome.wait("#bars", "tiny_regnet is not on this machine yet")
            assert server.requests == []
            chrome.wait("#fetch", "Accept CC-BY-NC-4.0 and download 0.496 MiB").click()
            chrome.wait(
                ".notice p",
                f"no source provided the weights of tiny_regnet: {source.url}: HTTP 404",
            )
            chrome.wait("#fetch").click()
            chrome.wait("#loading progress")
            chrome.wait("#loading", "of 0.5 MiB")
            chrome.wait("#stop", "Stop the download").click()
            chrome.wait("#stop", "Stopping")
            server.release.set()
            chrome.wait("#notice", "The download was stopped")
            chrome.wait("#fetch").click()
            chrome.wait(".facts", "on this machine")
            *others, last = server.starts("/tiny.safetensors")
            assert others == [None, None]
            assert (last or 0) >= 1 << 17
            chrome.wait("#bars", "tiny_regnet has no classes with names")
            chrome.wait("#overlay", "Grad-CAM of the features at stage 4")
            chrome.wait("#overlay img")
            assert not chrome.find(".bars li, .notice, #fetch")


def name(thing: str) -> str:
    """What the model that ships takes the picture of a thing for."""
    return predict_labels(SCENES / f"{thing}.jpg")[0]


def overlay(page: Chrome) -> str:
    """What tells one overlay from another: the address of its picture, which is made from its content."""
    images = page.find("#overlay img")
    return (images[0].get_attribute("src") or "") if images else ""


def ask(url: str, body: object = None, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
    """(HTTP status, text) of a request without a browser."""
    content = None if body is None else json.dumps(body).encode()
    request = Request(url, content, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def find_component(config: Any, label: str) -> int:
    return next(each["id"] for each in config["components"] if each["props"].get("label") == label)
