"""Who may reach the page, and what they may ask of it. Gradio runs in a process of its own, which it does not leave tidy."""

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
ASK = """
import json, os, sys
from pathlib import Path
from starlette.testclient import TestClient
from swag_models.api import SPECS
from swag_models.app import service
from swag_models.app.ui import Page
from swag_models.app.server import build_server, is_loopback

scenes, secret, names = sys.argv[1], sys.argv[2], sys.argv[3:]
specs = {"vit_nano_hashtags": SPECS["vit_nano_hashtags"]}
hosts = ["127.0.0.1", "127.8.8.8", "::1", "localhost", "0.0.0.0", "::", "192.168.1.2", "example.org"]
answers = {}
for host in ("127.0.0.1", "::1", "0.0.0.0"):
    client = TestClient(build_server(specs, folder="", host=host))
    answers[host] = [client.get("/", headers={"Host": name}).status_code for name in names]
client = TestClient(build_server(specs, folder="", host="localhost"), base_url="http://localhost")
sent = client.post("/gradio_api/upload", files={"files": ("house.jpg", open(scenes + "/house.jpg", "rb"))}).json()[0]
config = client.get("/config").json()
(number,) = (each["id"] for each in config["dependencies"] if each["api_name"] == "classify")
outside = secret + "/mine.png"
os.symlink(outside, os.path.join(os.path.dirname(sent), "link.png"))
os.mkfifo(os.path.join(os.path.dirname(sent), "fifo.png"))
requests = {
    "uploaded": {"path": sent, "orig_name": "house.jpg"},
    "uploaded, without a name": {"path": sent},
    "another file": {"path": outside, "orig_name": "a"},
    "a file that is not there": {"path": outside + "x", "orig_name": "a"},
    "through the folder": {"path": os.path.dirname(sent) + "/../../" + outside, "orig_name": "a"},
    "a link": {"path": os.path.join(os.path.dirname(sent), "link.png"), "orig_name": "a"},
    "a FIFO": {"path": os.path.join(os.path.dirname(sent), "fifo.png"), "orig_name": "a"},
    "a folder": {"path": os.path.dirname(sent), "orig_name": "a"},
    "a device": {"path": "/dev/zero", "orig_name": "a"},
    "NUL": {"path": sent + chr(0), "orig_name": "a"},
    "relative": {"path": os.path.relpath(outside), "orig_name": "a"},
    "a URL": {"path": "file://" + outside, "orig_name": "a"},
    "no path": {"orig_name": "a"},
    "text": outside,
    "a list": [outside],
}
shown = {}
for way, upload in requests.items():
    body = {"data": [upload, "vit_nano_hashtags"], "fn_index": number, "session_hash": way}
    shown[way] = client.post("/gradio_api/run/predict", json=body).text
sight = service.classify(specs["vit_nano_hashtags"], scenes + "/house.jpg", "house.jpg")
near = {}
for may_type in (True, False):
    page = Page(specs, folder=scenes, may_type=may_type, examples=[], uploads=Path(scenes))
    near[str(may_type)] = page.find(sight, secret)[page.near]
print(json.dumps({"private": [host for host in hosts if is_loopback(host)], "answers": answers, "near": near, "shown": shown}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the script above prints, and `said`, its stderr."""
    secret = tmp_path_factory.mktemp("secret")
    shutil.copy(SCENES / "house.jpg", secret / "mine.png")
    command = [sys.executable, "-c", ASK, str(SCENES), str(secret), *NAMES]
    inherited = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("uploads"))}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, env=inherited
    )
    return {**json.loads(done.stdout), "said": done.stderr}


def test_only_this_machine_reaches_a_loopback_address(found: Any) -> None:
    assert found["private"] == ["127.0.0.1", "127.8.8.8", "::1", "localhost"]


def test_a_page_for_this_machine_answers_to_its_own_names_only(found: Any) -> None:
    assert found["answers"] == {
        "127.0.0.1": [200, 200, 400, 400],
        "::1": [400, 200, 200, 400],
        "0.0.0.0": [200, 200, 200, 200],
    }


def test_other_machines_cannot_name_a_folder(found: Any) -> None:
    assert "mine.png" in found["near"]["True"]
    assert "mine.png" not in found["near"]["False"]
    assert "house.jpg" in found["near"]["False"]
    assert (
        found["said"].count(
            "other machines can reach the page; they cannot name a folder to look in"
        )
        == 1
    )


def test_only_uploaded_files_are_opened(found: Any) -> None:
    shown = dict(found["shown"])
    for way in ("uploaded", "uploaded, without a name"):
        assert "house" in shown.pop(way)
    for way, answer in shown.items():
        if way not in ("text", "a list"):  # refused by Gradio already
            assert "is not an uploaded image: upload the file, then choose it" in answer, way
        assert "%" not in answer, way  # no probability of any class
