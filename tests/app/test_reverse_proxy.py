"""The page under a path of a reverse proxy: every request works, and only under known names."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from chrome import BROWSER, DRIVER, open_chrome
from image_support import SCENES, predict_labels
from page_support import APP, MODEL, PageServer, Visitor, serve_page
from reverse_proxy import serve_below

from swag_models.app.addresses import Addresses
from swag_models.errors import ConfigError

HOUSE = SCENES / "house.jpg"
NAME = "demo.localhost"  # a name that browsers resolve to this machine
OPTIONS = ("--root-path", "/demo", "--allow-host", NAME)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    with serve_page(tmp_path_factory.mktemp("server"), *APP, *OPTIONS) as page:
        yield page


def get_root(page: PageServer) -> str:
    """The URL of the server, without the path of the page."""
    assert page.url.endswith("/demo/")
    return page.url.removesuffix("/demo/")


def test_a_page_behind_a_proxy_needs_a_token_and_lets_nobody_choose_a_folder(
    page: PageServer,
) -> None:
    assert len(page.address.partition("?token=")[2]) >= 32
    assert "other machines can reach the page" in page.read_log()[0]
    visitor = Visitor(page, "s")
    assert visitor.get("").status_code == 401
    redirect = visitor.client.get(page.address, allow_redirects=False, timeout=30)
    assert redirect.headers["Location"] == "/demo/"
    assert "; Path=/demo/" in redirect.headers["Set-Cookie"]


@pytest.mark.parametrize(
    ("strips", "keeps_host"),
    [
        (True, True),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
def test_uploads_examples_and_streams_work_below_a_path(
    page: PageServer, strips: bool, keeps_host: bool
) -> None:
    with serve_below(get_root(page), "/demo", strips=strips, keeps_host=keeps_host) as proxy:
        url = f"http://127.0.0.1:{proxy.port}/demo/"
        token = page.address.partition("?")[2]
        visitor = Visitor(replace(page, address=f"{url}?{token}"), f"{strips}{keeps_host}")
        response = visitor.open()
        assert response.url == url
        assert not re.search(r'(href|src)="/', response.text)  # outside of the path
        config = visitor.get("config").json()
        assert config["root"] == url.rstrip("/")
        (examples,) = (c for c in config["components"] if c["type"] == "dataset")
        example = examples["props"]["samples"][0][0]["url"]
        assert example.startswith(f"{url}gradio_api/file=")
        assert visitor.client.get(example, timeout=30).content[:2] == b"\xff\xd8"
        path = visitor.upload(HOUSE.read_bytes(), "house.jpg")
        visitor.client.headers["Origin"] = url.removesuffix("/demo/")  # as a browser sends it
        answer = visitor.call(visitor.read_handlers()["classify"], {"path": path}, MODEL, "")
        assert predict_labels(HOUSE)[0] in answer.text
        with visitor.get("gradio_api/heartbeat/x", stream=True) as stream:
            assert next(stream.iter_content(1))  # at once, not at the end


@pytest.mark.parametrize(
    "headers",
    [
        *({"Host": "elsewhere.example"}, {"Host": f"{NAME}.example"}, {"Host": "a b"}),
        *({"X-Forwarded-Host": "elsewhere.example"}, {"X-Forwarded-Host": "[::1"}),
        *({"X-Forwarded-Host": f"{NAME}, elsewhere.example"}, {"X-Forwarded-Host": f"x@{NAME}"}),
        {"Host": "elsewhere.example", "X-Forwarded-Host": NAME},
        *({"X-Forwarded-Proto": "javascript"}, {"X-Forwarded-Proto": "https, ws"}),
        *({"X-Forwarded-Prefix": "//elsewhere.example"}, {"X-Forwarded-Prefix": "/demo/.."}),
        *({"Host": NAME, "Origin": "http://elsewhere.example"}, {"Origin": f"http://{NAME}"}),
        {"Host": NAME, "X-Forwarded-Host": f"{NAME}:1", "Origin": f"http://{NAME}:2"},
        {"X-Forwarded-Host": "x" * 5000},
    ],
)
def test_other_names_protocols_and_paths_are_refused_in_one_line(
    page: PageServer, headers: dict[str, str]
) -> None:
    before = len(page.read_log())
    token = page.address.partition("?token=")[2]
    options = {"Authorization": f"Bearer {token}", **headers}
    response = Visitor(page, "s").get("config", headers=options)
    assert response.status_code == (403 if "Origin" in headers else 400)
    assert "elsewhere" not in response.text.replace("'elsewhere.example'", "").replace(
        "'http://elsewhere.example'", ""
    ).replace("'//elsewhere.example'", "")
    (line,) = page.read_log()[before:]
    assert line.startswith("refused: ")
    assert line.isprintable()
    assert len(line) < 500


@pytest.mark.parametrize(
    ("headers", "root"),
    [
        ({"Host": f"{NAME}:81"}, f"http://{NAME}:81/demo"),
        ({"Host": NAME, "X-Forwarded-Proto": "https"}, f"https://{NAME}/demo"),
        ({"Host": NAME.upper(), "X-Forwarded-Prefix": "/demo/"}, f"http://{NAME}/demo"),
        ({"X-Forwarded-Host": f"{NAME}:81, localhost"}, f"http://{NAME}:81/demo"),
    ],
)
def test_the_page_uses_the_address_of_the_browser(
    page: PageServer, headers: dict[str, str], root: str
) -> None:
    token = page.address.partition("?token=")[2]
    options = {"Authorization": f"Bearer {token}", **headers}
    assert Visitor(page, "s").get("config", headers=options).json()["root"] == root


@pytest.mark.parametrize(("protocol", "secure"), [("http", False), ("https", True)])
def test_a_cookie_of_https_is_sent_over_https_only(
    page: PageServer, protocol: str, secure: bool
) -> None:
    headers = {"Host": NAME, "X-Forwarded-Proto": protocol}
    url, client = page.address, Visitor(page, "s").client
    response = client.get(url, headers=headers, allow_redirects=False, timeout=30)
    assert ("; Secure" in response.headers["Set-Cookie"]) == secure


def test_the_path_without_a_slash_leads_to_the_page(page: PageServer) -> None:
    url = f"{get_root(page)}/demo"
    response = Visitor(page, "s").client.get(url, allow_redirects=False, timeout=30)
    assert (response.status_code, response.headers["Location"]) == (303, "/demo/")


@pytest.mark.parametrize("path", ["demo", "/a//b", "/..", "/a/../b", "/assets", "/gradio_api/x"])
@pytest.mark.parametrize("suffix", ["", "/"])
def test_a_wrong_root_path_is_an_error(path: str, suffix: str) -> None:
    with pytest.raises(ConfigError, match="for --root-path: allowed: a path such as /demo"):
        Addresses.parse("127.0.0.1", path + suffix, [])


@pytest.mark.parametrize(
    "path", ["http://a/b", "/ü", "/a?b", "/a b", "/a\n", "/\0", "/" + "a" * 200, "/%41", None]
)
def test_a_root_path_that_is_no_path_is_an_error(path: str) -> None:
    with pytest.raises(ConfigError, match="for --root-path"):
        Addresses.parse("127.0.0.1", path, [])


@pytest.mark.parametrize(
    "name",
    [
        *("https://a.example", "a.example:80", "a.example/x", "*", "*.example", "", "a b", "[::1"),
        *("a\n", "x:y:z", "[::1]:80", ".\u2024.", ".example.org", "a..b", None, 5),
    ],
)
def test_a_name_that_no_request_contains_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match="for --allow-host: allowed: the full name"):
        Addresses.parse("127.0.0.1", "", [name])


def test_names_are_stored_as_browsers_send_them() -> None:
    names = ["Demo.Example", "münchen.example", "::1", "[FE80::1]", "10.0.0.1"]
    expected = {"demo.example", "xn--mnchen-3ya.example", "[::1]", "[fe80::1]", "10.0.0.1"}
    assert Addresses.parse("127.0.0.1", "", names).allowed_hosts == expected
    assert Addresses.parse("127.0.0.1", "/", "a.example") == Addresses(
        allowed_hosts=frozenset({"a.example"})
    )


def test_only_a_page_without_a_proxy_is_private() -> None:
    assert Addresses.parse("127.0.0.1", "", ["localhost", "::1"]).is_private
    assert not Addresses.parse("127.0.0.1", "/demo", []).is_private
    assert not Addresses.parse("127.0.0.1", "", ["demo.example"]).is_private
    assert not Addresses.parse("0.0.0.0", "", []).is_private
    assert Addresses.parse("0.0.0.0", "", []).accepted_hosts is None
    assert "demo.example" in (Addresses.parse("0.0.0.0", "", ["demo.example"]).accepted_hosts or ())


@pytest.mark.slow
@pytest.mark.skipif(not (BROWSER and DRIVER), reason="chromium and chromedriver are not installed")
def test_a_browser_uses_the_page_below_a_path(page: PageServer, tmp_path: Path) -> None:
    with serve_below(get_root(page), "/demo") as proxy, open_chrome(tmp_path) as chrome:
        url = f"http://{NAME}:{proxy.port}/demo/"
        chrome.driver.get(f"{url}?{page.address.partition('?')[2]}")
        chrome.wait(".facts", "on this machine")
        assert chrome.driver.current_url == url
        chrome.wait("#examples button[aria-label='Example 1']").click()
        chrome.wait("#overlay img")
        chrome.wait(".bars li:first-child", "apple")
        chrome.upload(HOUSE)
        chrome.wait(".bars li:first-child", predict_labels(HOUSE)[0])
        images = "#examples img, #image img, #overlay img"
        assert chrome.run(f"""
        return [...document.querySelectorAll('{images}')].every(image => image.naturalWidth > 0)""")
        assert [path for path in proxy.requests if not path.startswith("/demo/")] == []
        urls = [
            u for u in chrome.read_requests() if not u.startswith(("chrome:", "data:", "blob:"))
        ]
        assert [u for u in urls if not u.startswith(url)] == []
        assert any("/heartbeat/" in u for u in urls)
