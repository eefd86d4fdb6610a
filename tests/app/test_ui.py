"""The page in a headless Chromium, with the server started from the command line.

SWAG_MODELS_SCREENSHOT=docs/app.png takes the screenshot of the README again.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from accessibility import list_controls, measure_contrast
from chrome import BROWSER, DRIVER, Chrome, open_chrome, until
from image_support import SCENES, predict_labels
from page_support import APP, MODEL, Visitor, serve_page
from PIL import Image
from safetensors.torch import save_file
from selenium.webdriver.common.keys import Keys
from server import Fault, Proxy, Server
from tiny import REGNET_SPEC, tiny

from swag_models.spec import Source

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "swag_models" / "app" / "examples").glob("*.jpg"))
DRAWINGS = "regnety_200mf_hashtags"
SCREENSHOT = os.environ.get("SWAG_MODELS_SCREENSHOT")
MIN_CONTRAST = 4.5  # WCAG 2, level AA
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of a user: three scenes and a broken file."""
    folder = tmp_path_factory.mktemp("images")
    for thing in ("chair", "house", "sailboat"):
        Image.open(SCENES / f"{thing}.jpg").resize((96, 96)).save(folder / f"my {thing} <b>.png")
    (folder / "broken.png").write_bytes((SCENES / "butterfly.jpg").read_bytes()[:60])
    return folder


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    """Records every request that the server of the page sends to the internet."""
    with Proxy() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def address(folder: Path, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page as `swag-models app` serves it, offline."""
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy.url)
    environment = {"SWAG_MODELS_OFFLINE": "1", **proxies}
    command = [*APP, "--model", MODEL, "--folder", str(folder)]
    with serve_page(tmp_path_factory.mktemp("server"), *command, environment=environment) as server:
        yield server.address
        rejected = ("refused: my photo.png ", f"refused: {folder / 'nowhere'} is not a folder")
        log = server.read_log()[1:]  # after the line that the page is ready
        assert [line for line in log if not line.startswith(rejected)] == []


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with open_chrome(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome


@pytest.fixture
def page(chrome: Chrome, address: str) -> Chrome:
    """The page, newly opened, in a window of desktop size."""
    chrome.resize(1280, 900)
    chrome.driver.get(address)
    chrome.wait(".facts", "on this machine")
    return chrome


pytestmark = needs_chromium


def test_an_image_is_classified_and_shown_with_a_saliency_map(page: Chrome) -> None:
    page.upload(SCENES / "house.jpg")
    page.wait(".bars li:first-child", name("house"))
    assert len(page.find(".bars li")) == 5
    page.wait("#overlay", "block 4")
    first = overlay(page)
    slider = page.find("input[aria-label='range slider for Block']")[0]
    slider.send_keys(Keys.HOME)
    page.wait("#overlay", "block 1")
    second = until(lambda: overlay(page) if overlay(page) != first else None, "another map")
    page.find("input[aria-label='range slider for Opacity']")[0].send_keys(Keys.HOME)
    third = until(lambda: overlay(page) if overlay(page) != second else None, "the image alone")
    page.choose("Head", "2")
    page.find("input[aria-label='range slider for Opacity']")[0].send_keys(Keys.END)
    until(lambda: overlay(page) != third, "the map of one head alone")


def test_the_last_uploaded_image_is_the_one_shown(page: Chrome) -> None:
    for thing in ("butterfly", "star", "chair", "sailboat"):
        page.upload(SCENES / f"{thing}.jpg")
    page.wait(".bars li:first-child", name("sailboat"))
    until(
        lambda: (
            page.find(".similar figure") and "my sailboat" in page.find(".similar figure")[0].text
        ),
        "the neighbours of the last image",
    )
    page.upload(SCENES / "house.jpg")
    page.wait(".bars li:first-child", name("house"))
    until(
        lambda: "my house" in page.find(".similar figure")[0].text,
        "the neighbours of the last image",
    )


def test_an_example_can_be_chosen(page: Chrome) -> None:
    page.choose("Model", DRAWINGS)
    for number, path in [(2, EXAMPLES[1]), (10, EXAMPLES[9])]:
        page.wait(f"#examples button[aria-label='Example {number}']").click()
        page.wait(".bars li:first-child", predict_labels(path, name=DRAWINGS)[0])
    page.wait("#examples + *", "vit_nano_hashtags gets 24% right")


@pytest.mark.parametrize(
    ("content", "reason"),
    [("cut", "cannot be read: "), ("text", "is not an image that Pillow can read")],
)
def test_a_broken_file_gives_one_line_and_the_page_keeps_working(
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
    notice = page.read(".notice[role=alert]", reason)
    assert notice.startswith("my photo.png")
    assert "\n" not in notice
    until(
        lambda: not page.find(".bars li, #overlay img, .similar figure"),
        "the previous results to disappear",
    )
    page.upload(SCENES / "chair.jpg")
    page.wait(".bars li:first-child", name("chair"))
    assert not page.find(".notice")


def test_licence_and_size_are_shown_and_nothing_is_downloaded_before_consent(
    page: Chrome, proxy: Proxy
) -> None:
    page.upload(SCENES / "house.jpg")
    page.wait(".bars li:first-child", name("house"))
    page.choose("Model", "vit_b16_in1k_linear")
    page.wait(".facts", "CC-BY-NC-4.0, no commercial use")
    page.wait(".facts", "330 MiB to download")
    page.wait("#bars", "vit_b16_in1k_linear is not on this machine yet")
    page.wait("#download", "Accept CC-BY-NC-4.0 and download 330 MiB").click()
    page.wait(
        ".notice",
        "vit_b16_in1k_linear is not on this machine, "
        "and SWAG_MODELS_OFFLINE or HF_HUB_OFFLINE turns off",
    )
    page.wait("#download")
    page.choose("Model", "vit_nano_hashtags")
    page.wait(".bars li:first-child", name("house"))
    assert not page.find(".notice")
    assert proxy.requests == []


def test_similar_images_are_found_in_the_users_folder(page: Chrome, folder: Path) -> None:
    page.upload(SCENES / "sailboat.jpg")
    page.wait(".similar figure", "my sailboat <b>.png")
    similarities = [float(figure.text.split()[0]) for figure in page.find(".similar figure")]
    assert len(similarities) == 3
    assert page.find(".similar figure")[0].text.endswith("my sailboat <b>.png")
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[0] > 0.9
    details = page.wait("#similar details", "Images that cannot be read: 1")
    assert "broken.png" in (details.get_attribute("textContent") or "")
    box = page.find("#folder textarea")[0]
    box.clear()
    box.send_keys(str(folder / "nowhere"), Keys.ENTER)
    page.wait(".notice", f"{folder / 'nowhere'} is not a folder on this machine")
    box.clear()
    box.send_keys(str(SCENES), Keys.ENTER)
    until(lambda: len(page.find(".similar figure")) == 8, "the images of the other folder")
    assert not page.find(".notice")


def test_images_of_a_class_are_found_and_saved(page: Chrome, tmp_path: Path) -> None:
    box = page.find("#word textarea")[0]
    box.send_keys("chiar", Keys.ENTER)
    page.wait("#found [role=alert]", "no class 'chiar'; did you mean chair")
    box.clear()
    box.send_keys("#Chair", Keys.ENTER)
    page.wait("#found h2", "Most probably chair")
    figures = page.find("#found figure")
    assert len(figures) == 3
    assert figures[0].text.endswith("my chair <b>.png")
    assert not page.find(".notice, #similar figure")  # no image was chosen
    page.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    page.wait("#found a[download]", "Save the images of the class as CSV").click()
    file = tmp_path / "images_of_the_class.csv"
    lines = until(lambda: file.exists() and file.read_text("utf-8-sig").splitlines(), "the file")
    assert lines[0] == "class,image,probability"
    assert lines[1].startswith("chair,my chair <b>.png,0.")
    assert len(lines) == 4
    page.upload(SCENES / "house.jpg")
    page.wait("#similar figure", "my house <b>.png")
    assert len(page.find("#found figure")) == 3
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(Keys.DELETE, Keys.ENTER)
    until(lambda: not page.find("#found figure"), "the images of the class to disappear")


def test_two_models_are_compared_on_one_image(page: Chrome) -> None:
    page.upload(SCENES / "house.jpg")
    page.wait(".bars li:first-child", name("house"))
    page.choose("Compare with", "regnety_nano_hashtags")
    page.wait(".comparison section:nth-child(2) h2", "regnety_nano_hashtags")
    first, second = page.find(".comparison section")
    assert first.location["y"] == second.location["y"]
    other = predict_labels(SCENES / "house.jpg", name="regnety_nano_hashtags")[0]
    for section, model, label in (
        (first, MODEL, name("house")),
        (second, "regnety_nano_hashtags", other),
    ):
        assert section.text.startswith(model)
        assert re.search(r"[\d.]+ ms per image", section.text)
        lines = section.text.splitlines()
        assert lines[2] == label
    page.choose("Compare with", "resnet18_swsl_in1k")
    page.wait("#bars", "resnet18_swsl_in1k is not on this machine yet; choose it as the model")
    assert page.find(".bars li")[0].text.startswith(name("house"))
    page.choose("Compare with", "no other model")
    until(lambda: "resnet18" not in page.find("#bars")[0].text, "the classes of one model")


def test_the_page_can_be_used_by_keyboard_alone(page: Chrome) -> None:
    """Every element that Tab reaches has a name and a visible focus; an example is chosen so."""
    focus = """
    const e = document.activeElement, style = getComputedStyle(e), isBody = e === document.body;
    if (e.dataset.seen) return null;
    if (!isBody) e.dataset.seen = 'yes';  // the body has the focus briefly after a drop-down list
    const name = e.ariaLabel || e.textContent.trim() || e.closest('label')?.textContent.trim()
      || e.querySelector('img')?.alt;
    const hasOutline = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;
    return {
      what: e.outerHTML.slice(0, 100),
      name: isBody ? 'body' : name || '',
      outline: isBody || hasOutline}"""
    stops = []
    page.press(Keys.TAB)
    while (stop := page.run(focus)) and len(stops) < 60:
        stops.append(stop)
        page.press(*[Keys.ENTER] * (stop["name"] == "Example 4"), Keys.TAB)
    assert [stop for stop in stops if not stop["name"] or not stop["outline"]] == []
    names = [stop["name"] for stop in stops]
    expected = [
        "Example 4",
        "Model",
        "Compare with",
        "range slider for Block",
        "Head",
        "Find",
        "Search",
    ]
    assert [name for name in names if name in expected] == expected
    page.wait(".bars li:first-child", predict_labels(EXAMPLES[3])[0])


@pytest.mark.parametrize(
    ("width", "dark"),
    [
        *((1280, False), (390, True)),
        *(pytest.param(*window, marks=pytest.mark.slow) for window in ((1280, True), (390, False))),
    ],
)
def test_everything_is_legible_and_has_a_name(
    page: Chrome, address: str, width: int, dark: bool
) -> None:
    page.resize(width, 900, dark)
    page.driver.get(address)
    page.wait(".facts", "on this machine")
    bars = page.wait("#bars[aria-live=polite]", "Choose an image")
    page.wait("#examples button[aria-label='Example 1']").click()
    page.wait("#overlay img[alt='Attention of the class token in block 4']")
    page.wait("#image img[alt='The chosen image']")
    page.wait(".similar figure")
    first = predict_labels(EXAMPLES[0])[0]
    assert bars.text.startswith(first)  # the element is the same, so its new text is announced
    contrasts = until(
        # elements fade in
        lambda: (
            found if (found := measure_contrast(page)) and found[0].ratio >= MIN_CONTRAST else None
        ),
        f"a contrast of at least {MIN_CONTRAST}",
    )
    assert {first, "Find", "Image", "Licence" if width > 640 else "#"} <= {
        contrast.text for contrast in contrasts
    }
    controls = list_controls(page)
    assert [control for control in controls if not control[1]] == []
    assert {role for role, _ in controls} >= {"button", "combobox", "slider", "textbox"}


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_a_phone(page: Chrome, dark: bool) -> None:
    page.resize(390, 844, dark)
    page.upload(SCENES / "house.jpg")
    page.wait(".bars li")
    bars = page.run("""
    return [...document.querySelectorAll('#image, .bars li, #examples')].map(
      e => e.getBoundingClientRect()).map(box => [box.top, box.bottom])""")
    image, *bars, examples = bars
    assert page.run("return window.scrollY") == 0
    assert 0 < image[1] < bars[0][0] < bars[0][1] < 844  # the answer is visible without scrolling
    assert bars[0][0] - image[1] < 40
    assert examples[0] > bars[-1][1]
    assert not page.run("return document.querySelector('.facts').open")
    assert not page.run("return document.querySelector('.facts dl').checkVisibility()")
    page.wait(".similar figure", "my house <b>.png")
    assert page.run("return document.documentElement.scrollWidth") <= 390
    left = page.run(
        "return ['#image', '#overlay', '#similar'].map("
        "id => document.querySelector(id).getBoundingClientRect().left)"
    )
    assert max(left) - min(left) < 20  # in one column
    background = page.run("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    assert brightness < 60 if dark else brightness > 200


def test_nothing_leaves_the_machine(page: Chrome, address: str, proxy: Proxy) -> None:
    page.read_requests()
    page.driver.get(address)
    page.wait("#examples button[aria-label='Example 8']").click()
    page.wait(".similar figure")
    page.wait("#overlay img")
    urls = page.read_requests()
    assert len(urls) > 20
    assert [url for url in urls if not url.startswith((address, "data:", "blob:"))] == []
    assert proxy.requests == []


@pytest.mark.slow  # tests/app/test_access.py sends the same requests without a browser
def test_a_page_for_other_machines_asks_for_its_token(chrome: Chrome, tmp_path: Path) -> None:
    with serve_page(tmp_path, *APP, "--host", "0.0.0.0") as server:
        token = server.address.partition("?token=")[2]
        assert len(token) >= 32
        assert "without a password" not in server.read_log()[0]
        visitor = Visitor(server, "s")
        for path in ("", "config", "?token=", "?token=x", f"?token={token[:-1]}"):
            assert visitor.get(path).status_code == 401
        assert visitor.client.get(server.address, timeout=30).status_code == 200
        assert visitor.get("config").status_code == 200  # by the cookie
        other = Visitor(server, "s")
        other.client.headers["Authorization"] = f"Bearer {token}"
        assert other.get("config").status_code == 200
        chrome.driver.get(server.url)
        chrome.wait("body", "the token is missing or wrong")
        chrome.driver.get(server.address)
        chrome.wait(".facts", "on this machine")
        assert chrome.driver.current_url == server.url  # without the token
        chrome.upload(SCENES / "house.jpg")
        chrome.wait(".bars li:first-child", name("house"))
        chrome.wait("#overlay img")
        assert token not in server.log.read_text("utf-8")


def test_each_tab_shows_its_own_image(page: Chrome, address: str) -> None:
    first = page.driver.current_window_handle
    page.upload(SCENES / "house.jpg")
    page.wait(".bars li:first-child", name("house"))
    page.driver.switch_to.new_window("tab")
    page.driver.get(address)
    page.upload(SCENES / "chair.jpg")
    page.wait(".bars li:first-child", name("chair"))
    page.wait("#overlay img")
    page.driver.close()
    page.driver.switch_to.window(first)
    page.find("input[aria-label='range slider for Block']")[0].send_keys(Keys.HOME)
    page.wait("#overlay", "block 1")
    assert not page.find(".notice")


def test_the_screenshot_of_the_readme_can_be_taken(page: Chrome, tmp_path: Path) -> None:
    page.resize(1200, 900)
    page.choose("Model", DRAWINGS)
    page.wait("#examples button[aria-label='Example 7']").click()
    page.wait(".bars li:first-child", "lemon")
    # of python -m studies.drawings build/drawings
    folder = ROOT / "build" / "drawings" / "images" if SCREENSHOT else SCENES
    box = page.find("#folder textarea")[0]
    box.clear()
    box.send_keys(str(folder.relative_to(ROOT)), Keys.ENTER)
    seconds = 600 if SCREENSHOT else 30
    until(lambda: len(page.find("#similar figure")) == 8, "the images of the folder", seconds)
    page.find("#word textarea")[0].send_keys("#fruit", Keys.ENTER)
    until(lambda: len(page.find("#found figure")) == 8, "the images of the class")
    page.wait("#overlay", "Grad-CAM of lemon at stage 4")
    page.wait("#overlay img")
    path = ROOT / SCREENSHOT if SCREENSHOT else tmp_path / "app.png"
    page.run("document.activeElement.blur()")
    page.save_screenshot(path)
    with Image.open(path) as screenshot:
        assert screenshot.width > 1000
        assert len(screenshot.convert("RGB").resize((50, 50)).getcolors(2500) or []) > 100


@pytest.mark.slow
def test_a_model_is_downloaded_with_progress_stopped_and_resumed(
    chrome: Chrome, tmp_path: Path
) -> None:
    """A RegNet without classes: it has no bars, but a Grad-CAM map."""
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
        with serve_page(tmp_path, "-c", SERVE, spec.to_json()) as page:
            chrome.driver.get(page.address)
            chrome.wait(".facts", "0.496 MiB to download")
            chrome.upload(SCENES / "house.jpg")
            chrome.wait("#bars", "tiny_regnet is not on this machine yet")
            assert server.requests == []
            chrome.wait("#download", "Accept CC-BY-NC-4.0 and download 0.496 MiB").click()
            chrome.wait(
                ".notice p",
                f"no source provided the weights of tiny_regnet: {source.url}: HTTP 404",
            )
            chrome.wait("#download").click()
            chrome.wait("#progress progress")
            chrome.wait("#progress", "of 0.5 MiB")
            chrome.wait("#stop", "Stop the download").click()
            chrome.wait("#stop", "Stopping")
            server.release.set()
            chrome.wait("#notice", "The download was stopped")
            chrome.wait("#download").click()
            chrome.wait(".facts", "on this machine")
            *earlier, last = server.list_start_bytes("/tiny.safetensors")
            assert earlier == [None, None]
            assert (last or 0) >= 1 << 17
            chrome.wait("#bars", "tiny_regnet has no class names")
            chrome.wait("#overlay", "Grad-CAM of the features at stage 4")
            chrome.wait("#overlay img")
            assert not chrome.find(".bars li, .notice, #download")


def name(thing: str) -> str:
    """The label that the shipped model gives to the example of a class."""
    return predict_labels(SCENES / f"{thing}.jpg")[0]


def overlay(page: Chrome) -> str:
    """The URL of the shown saliency map, which depends on its content; "" if there is none."""
    images = page.find("#overlay img")
    return (images[0].get_attribute("src") or "") if images else ""
