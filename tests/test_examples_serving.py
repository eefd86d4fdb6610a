"""The servers of examples/serving, as processes: the right answer for each client, and limits."""

from __future__ import annotations

import http.client
import importlib.util
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from fetch_support import wait_until
from hostile_images import BOMBS, make_png
from image_support import compute_probabilities, render_scenes, write_file
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from serving_support import SERVING, RunningServer, encode_png, send_all, start_server

from swag_models.api import get_spec, load_classes
from swag_models.cli import main

NANO = "regnety_nano_hashtags"
CLIENTS = 200
MAX_BODY = 10 << 20
NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("grpc_reflection") is None, reason="Ray Serve is not installed"
)
READY = r"running on (http://127\.0\.0\.1:\d+)"


def write_color_model(
    path: Path, channels: int = 3, classes: bool = True, multi_label: bool | None = None
) -> np.ndarray:
    """Write a model whose logits are linear in the mean colour; return its weights (8, C)."""
    weights = np.random.default_rng(0).normal(size=(8, channels)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["images"], ["means"]),
            helper.make_node("Flatten", ["means"], ["colours"]),
            helper.make_node("Gemm", ["colours", "weights"], ["logits"], transB=1),
        ],
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", channels, 48, 48])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    preprocess = {**asdict(get_spec(NANO).preprocess), "image_size": [48, 48]}
    helper.set_model_props(
        model,
        ({} if multi_label is None else {"multi_label": json.dumps(multi_label)})
        | {
            "input": "images",
            "output": "logits",
            "preprocess": json.dumps(preprocess),
            "classes": json.dumps(list("abcdefgh") if classes else None),
        },
    )
    onnx.save(model, path)
    return weights


@pytest.fixture(scope="module")
def color_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The server of a tiny model, in a process that cannot import torch."""
    folder = tmp_path_factory.mktemp("colours")
    write_color_model(folder / "colours.onnx")
    write_file(folder / "torch.py", b"raise ImportError('torch is not needed')")
    with start_server(
        "onnx_asgi.py",
        folder / "colours.onnx",
        "--port",
        "0",
        ready=READY,
        environment={
            "PYTHONPATH": f"{folder}:{SERVING.parents[1]}",
            "XDG_CACHE_HOME": str(folder / "cache"),
        },
    ) as server:
        yield server
    assert not (folder / "cache").exists(), "onnxruntime stores an identifier there, to report"


def check_pairing(
    url: str, images: list[Image.Image], expected: np.ndarray, classes: list[str], repeats: int
) -> None:
    """Send image i from client i, and check that each answer is the one for its own image."""
    bodies = [encode_png(image) for image in images]
    answers = send_all(f"{url}/classify?top_k={len(classes)}", bodies, repeats)
    assert [len(client) for client in answers] == [repeats] * CLIENTS
    for own, client in enumerate(answers):
        for answer in client:
            assert list(answer.values()) == sorted(answer.values(), reverse=True)
            distances = np.abs(expected - [answer[name] for name in classes]).max(axis=1)
            assert distances.argmin() == own
            assert distances[own] < 1e-4


def find_connection(server: RunningServer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)


def test_each_of_200_clients_gets_the_answer_for_its_own_image(
    color_server: RunningServer, tmp_path: Path
) -> None:
    colors = [(i % 6 * 50, i // 6 % 6 * 50, i // 36 * 50) for i in range(CLIENTS)]
    images = [Image.new("RGB", (60, 50), color) for color in colors]
    weights = write_color_model(tmp_path / "colors.onnx")
    preprocess = get_spec(NANO).preprocess
    inputs = (np.array(colors) / 255 - preprocess.mean) / preprocess.std
    exponentials = np.exp(inputs @ weights.T)
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    check_pairing(color_server.url, images, expected, list("abcdefgh"), repeats=1)


def test_an_image_that_cannot_be_read_is_refused_in_one_line(color_server: RunningServer) -> None:
    good = encode_png(Image.new("RGB", (60, 50), "teal"))
    refused = {
        b"": 422,
        b"text": 422,
        good[: len(good) // 2]: 422,
        make_png(20_000, 20_000): 422,
        make_png(1, 60_000, bytes(120_000)): 422,  # 48 x 2,880,000 when resized
        bytes(MAX_BODY + 1): 413,
        BOMBS["exif after the pixels of a png"](): 422,
    }
    for body, status in refused.items():
        response = color_server.post(body)
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert error.isprintable()
        assert 0 < len(error) < 500
    for query in ("?top_k=0", "?top_k=-1", "?top_k=x", "?top_k=\u0663", "?top_k=" + "9" * 5000):
        response = color_server.post(good, query)
        assert (response.status_code, list(response.json())) == (400, ["error"])
    answer = color_server.post(good, "?top_k=3").json()["predictions"]
    assert [list(row) for row in answer] == [["label", "probability"]] * 3
    assert len(color_server.post(good, "?top_k=99").json()["predictions"]) == 8
    assert color_server.log.count("\n") < 10


def test_requests_beyond_the_limit_are_refused_until_others_end(
    color_server: RunningServer,
) -> None:
    good = encode_png(Image.new("RGB", (60, 50), "teal"))
    connections = []
    for _ in range(256):  # with bodies that never arrive
        connection = find_connection(color_server)
        connection.putrequest("POST", "/classify")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"x")
        connections.append(connection)
    wait_until(lambda: color_server.post(good).status_code == 503)
    response = color_server.post(good)
    assert response.headers["retry-after"] == "1"
    assert "too many requests" in response.json()["error"]
    health = httpx.get(f"{color_server.url}/health", trust_env=False)
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    for connection in connections:
        connection.close()
    wait_until(lambda: color_server.post(good).status_code == 200)


@pytest.mark.parametrize(
    "change",
    [
        "missing",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("gpu", "text", "classes", "port")),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(change: str, tmp_path: Path) -> None:
    path, options = tmp_path / "model.onnx", []
    write_color_model(path, classes=change != "classes")
    if change == "missing":
        path.unlink()
    elif change == "text":
        path.write_text("text")
    elif change == "gpu":
        options = ["--device", "gpu"]
    elif change == "port":
        options = ["--port", "70000"]
    command = [sys.executable, str(SERVING / "onnx_asgi.py"), str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()[-1]) < 500


@pytest.mark.slow
def test_an_exported_model_answers_200_clients_as_the_classifier_does(tmp_path: Path) -> None:
    assert main(["export", NANO, str(tmp_path / "nano.onnx")]) == 0
    images, classes = render_scenes(CLIENTS)[0][:CLIENTS], list(load_classes(NANO))
    expected = compute_probabilities(images, NANO).numpy()
    with start_server("onnx_asgi.py", tmp_path / "nano.onnx", "--port", "0", ready=READY) as server:
        check_pairing(server.url, images, expected, classes, repeats=5)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "multi_label"), [(1, False), (3, True)])
def test_greyscale_and_multi_label_models_are_served_as_they_are(
    channels: int, multi_label: bool, tmp_path: Path
) -> None:
    weights = write_color_model(tmp_path / "m.onnx", channels, multi_label=multi_label)
    preprocess = get_spec(NANO).preprocess
    inputs = (np.array([30, 90, 200]) / 255 - preprocess.mean) / preprocess.std
    logits = (inputs if channels == 3 else inputs.mean(keepdims=True)) @ weights.T
    odds = np.exp(logits)
    expected = odds / (1 + odds) if multi_label else odds / odds.sum()
    with start_server("onnx_asgi.py", tmp_path / "m.onnx", "--port", "0", ready=READY) as server:
        body = encode_png(Image.new("RGB", (60, 50), (30, 90, 200)))
        rows = server.post(body, "?top_k=8").json()["predictions"]
    answer = {row["label"]: row["probability"] for row in rows}
    np.testing.assert_allclose([answer[name] for name in "abcdefgh"], expected, rtol=1e-4)


@pytest.mark.slow
def test_no_hostile_image_stops_the_server(color_server: RunningServer) -> None:
    for name, make in BOMBS.items():
        response = color_server.post(make())
        assert response.status_code in (413, 422), name
        assert len(response.json()["error"]) < 500
    good = encode_png(Image.new("RGB", (60, 50), "teal"))
    assert color_server.post(good).status_code == 200


@pytest.mark.slow
def test_a_body_that_arrives_too_slowly_is_refused(color_server: RunningServer) -> None:
    with closing(find_connection(color_server)) as connection:
        connection.timeout = 60
        connection.putrequest("POST", "/classify")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"x")
        assert connection.getresponse().status == 408


@pytest.mark.slow
@NEEDS_RAY
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["no_model"], "no_model"),
        (["vit_b16"], "classes"),
        ([NANO, "--port", "70000"], "--port"),
        ([NANO, "--min-replicas", "9"], "--min-replicas"),
        ([NANO, "--host", "no.host.invalid"], "no.host.invalid"),
        ([NANO, "--port", "used"], "in use"),
    ],
)
def test_ray_serve_is_not_started_with_invalid_options(options: list[str], reason: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = str(used.getsockname()[1])
        command = [sys.executable, str(SERVING / "ray_classify.py"), *options]
        command = [port if part == "used" else part for part in command]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert reason in done.stderr.splitlines()[-1]


@pytest.mark.slow
@NEEDS_RAY
def test_replicas_of_ray_serve_answer_200_clients_as_the_classifier_does() -> None:
    images, classes = render_scenes(CLIENTS)[0][:CLIENTS], list(load_classes(NANO))
    expected = compute_probabilities(images, NANO).numpy()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with start_server(
        "ray_classify.py",
        NANO,
        "--port",
        str(port),
        "--min-replicas",
        "2",
        ready="ready at (http://[^ /]+)",
        seconds=180,
    ) as server:
        check_pairing(server.url, images, expected, classes, repeats=5)
        for body, status in {
            b"text": 422,
            make_png(20_000, 20_000): 422,
            bytes(MAX_BODY + 1): 413,
        }.items():
            response = server.post(body)
            assert response.status_code == status
            assert len(response.json()["error"]) < 500
        assert server.post(b"text", "?top_k=0").status_code == 400
        with ExitStack() as connections:
            for _ in range(2 * 32 + 256 + 50):  # with bodies that never arrive
                connection = connections.enter_context(closing(find_connection(server)))
                connection.putrequest("POST", "/classify")
                connection.putheader("Content-Length", "1000")
                connection.endheaders(b"x")
            wait_until(lambda: server.post(b"text").status_code == 503)
            assert "Traceback" not in server.post(b"text").text
        wait_until(lambda: server.post(b"text").status_code == 422)
        health = httpx.get(f"{server.url}/-/healthz", trust_env=False)
        assert (health.status_code, health.text) == (200, "success")
