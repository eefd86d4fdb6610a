"""Access to the page: host names, folders and files.

Gradio runs in another process, because importing it changes global state.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCENES = Path(__file__).parents[2] / "examples" / "scenes"
NAMES = ["127.0.0.1", "localhost:80", "[::1]:80", "elsewhere.example"]
SCRIPT = """
import json, os, sys
from pathlib import Path
from starlette.testclient import TestClient
from swag_models.api import SPECS
from swag_models.app import service
from swag_models.app.ui import Page
from swag_models.app.server import build_server, is_loopback

scenes, secret, names = sys.argv[1], sys.argv[2], sys.argv[3:]
specs = {"vit_nano_hashtags": SPECS["vit_nano_hashtags"]}
hosts = [
    *("127.0.0.1", "127.8.8.8", "::1", "localhost"),  # loopback
    *("0.0.0.0", "::", "192.168.1.2", "example.org"),
]
statuses = {}
for host in ("127.0.0.1", "::1", "0.0.0.0"):
    client = TestClient(build_server(specs, folder="", host=host))
    statuses[host] = [client.get("/", headers={"Host": name}).status_code for name in names]
client = TestClient(build_server(specs, folder="", host="localhost"), base_url="http://localhost")
with open(scenes + "/house.jpg", "rb") as file:
    upload = client.post("/gradio_api/upload", files={"files": ("house.jpg", file)})
uploaded = upload.json()[0]
folder = os.path.dirname(uploaded)
config = client.get("/config").json()
(number,) = (event["id"] for event in config["dependencies"] if event["api_name"] == "classify")
outside = secret + "/mine.png"
os.symlink(outside, folder + "/link.png")
os.mkfifo(folder + "/fifo.png")
requests = {
    "uploaded": {"path": uploaded, "orig_name": "house.jpg"},
    "uploaded, without a name": {"path": uploaded},
    "another file": {"path": outside, "orig_name": "a"},
    "a missing file": {"path": outside + "x", "orig_name": "a"},
    "through the folder": {"path": folder + "/../../" + outside, "orig_name": "a"},
    "a link": {"path": folder + "/link.png", "orig_name": "a"},
    "a FIFO": {"path": folder + "/fifo.png", "orig_name": "a"},
    "a folder": {"path": folder, "orig_name": "a"},
    "a device": {"path": "/dev/zero", "orig_name": "a"},
    "NUL": {"path": uploaded + chr(0), "orig_name": "a"},
    "relative": {"path": os.path.relpath(outside), "orig_name": "a"},
    "a URL": {"path": "file://" + outside, "orig_name": "a"},
    "no path": {"orig_name": "a"},
    "text": outside,
    "a list": [outside],
}
responses = {}
for kind, upload in requests.items():
    body = {"data": [upload, "vit_nano_hashtags"], "fn_index": number, "session_hash": kind}
    responses[kind] = client.post("/gradio_api/run/predict", json=body).text
analysis = service.classify_image(
    specs["vit_nano_hashtags"], scenes + "/house.jpg", "house.jpg"
)
similar = {}
for may_type in (True, False):
    page = Page(specs, folder=scenes, may_type=may_type, examples=[], uploads=Path(scenes))
    similar[str(may_type)] = page.show_similar(analysis, secret)[page.similar]
print(json.dumps({
    "private": [host for host in hosts if is_loopback(host)],
    "statuses": statuses,
    "similar": similar,
    "responses": responses,
}))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What SCRIPT prints, and its stderr."""
    secret = tmp_path_factory.mktemp("secret")
    shutil.copy(SCENES / "house.jpg", secret / "mine.png")
    command = [sys.executable, "-c", SCRIPT, str(SCENES), str(secret), *NAMES]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("uploads"))}
    process = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, env=environment
    )
    return {**json.loads(process.stdout), "stderr": process.stderr}


def test_only_this_machine_reaches_a_loopback_address(results: Any) -> None:
    assert results["private"] == ["127.0.0.1", "127.8.8.8", "::1", "localhost"]


def test_a_page_for_this_machine_accepts_only_its_own_host_names(results: Any) -> None:
    assert results["statuses"] == {
        "127.0.0.1": [200, 200, 400, 400],
        "::1": [400, 200, 200, 400],
        "0.0.0.0": [200, 200, 200, 200],
    }


def test_other_machines_cannot_choose_a_folder(results: Any) -> None:
    assert "mine.png" in results["similar"]["True"]
    assert "mine.png" not in results["similar"]["False"]
    assert "house.jpg" in results["similar"]["False"]
    assert (
        results["stderr"].count(
            "other machines can reach the page; they cannot choose a folder to search"
        )
        == 1
    )


def test_only_uploaded_files_are_opened(results: Any) -> None:
    responses = dict(results["responses"])
    for kind in ("uploaded", "uploaded, without a name"):
        assert "house" in responses.pop(kind)
    for kind, response in responses.items():
        if kind not in ("text", "a list"):  # rejected by Gradio itself
            assert "is not an uploaded image: upload the file, then choose it" in response, kind
        assert "%" not in response, kind  # no probability of any class
