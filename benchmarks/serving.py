"""Images per second and latencies of the servers of examples/serving, and of the model alone.

    python benchmarks/serving.py [--server onnx ray] [--clients 200 16] [--rounds 25]

The model has random weights. Each server runs as in the example, in processes of its own; clients
with one connection each send JPEGs of 500 x 500 pixels from this process, and send the next when
they have the answer. In each round, the model alone runs in this process, on batches of ready
inputs, with one thread per CPU and nothing else to do, and then the clients send their images.
The servers share the CPUs with the clients, whose CPU time is given as a share of all CPUs.
"""

import argparse
import asyncio
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import psutil
import torch
from embed import make_images
from measure import measure_cpu

import swag_models
from swag_models import export, publish
from swag_models.runtime import count_cpus

BATCH = 8  # of both servers
SERVING = Path(__file__).parents[1] / "examples" / "serving"


class Measurement:
    """Seconds of wall and CPU time per image in each round, and latencies of all requests."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.client_share: list[float] = []
        self.latencies: list[float] = []


async def send_images(url: str, bodies: Sequence[bytes], clients: int) -> list[float]:
    """Send images from concurrent clients; return the latency of each request in seconds."""

    async def run_client(own: Sequence[bytes]) -> None:
        async with httpx.AsyncClient(timeout=600, trust_env=False, verify=False) as client:
            for body in own:
                start = time.perf_counter()
                (await client.post(url, content=body)).raise_for_status()
                latencies.append(time.perf_counter() - start)

    latencies: list[float] = []
    await asyncio.gather(*(run_client(bodies[number::clients]) for number in range(clients)))
    return latencies


def start_server(command: list[str]) -> tuple[psutil.Popen, str]:
    """Start a server on a free port; return its process and URL when it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/classify"
    process = psutil.Popen(
        [sys.executable, *command, "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while True:
        if process.poll() is not None:
            sys.exit(f"{command[0]} ended with {process.returncode}")
        try:
            if httpx.post(url, content=b"", trust_env=False, timeout=60).status_code == 422:
                return process, url
        except httpx.TransportError:
            pass
        time.sleep(0.2)


def load_alone(server: str, folder: Path) -> Callable[[], object]:
    """The model alone on one batch, as the server runs it."""
    size = swag_models.get_spec(folder / "model").image_size
    inputs = torch.randn(BATCH, 3, size, size)
    if server == "onnx":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count_cpus()
        session = onnxruntime.InferenceSession(folder / "model.onnx", options)
        return lambda: session.run(None, {"images": inputs.numpy()})
    torch.set_num_threads(count_cpus())
    model = swag_models.load_model(folder / "model")
    return torch.inference_mode()(lambda: model(inputs))


def measure(
    url: str,
    process: psutil.Process,
    run_alone: Callable[[], object],
    bodies: Sequence[bytes],
    clients: int,
    rounds: int,
) -> tuple[Measurement, Measurement]:
    """Measure the model alone and the server alternately."""
    alone, served = Measurement(), Measurement()
    own = psutil.Process()
    for turn in range(rounds + 1):  # the first is not counted
        start, cpu = time.perf_counter(), sum(own.cpu_times()[:2])
        batches = max(1, len(bodies) // BATCH // 2)
        for _ in range(batches):
            run_alone()
        if turn:
            alone.wall.append((time.perf_counter() - start) / batches / BATCH)
            alone.cpu.append((sum(own.cpu_times()[:2]) - cpu) / batches / BATCH)
        start, cpu, client_cpu = time.perf_counter(), measure_cpu(process), own.cpu_times()
        latencies = asyncio.run(send_images(url, bodies, clients))
        if turn:
            seconds = time.perf_counter() - start
            served.wall.append(seconds / len(bodies))
            served.cpu.append((measure_cpu(process) - cpu) / len(bodies))
            used = sum(own.cpu_times()[:2]) - sum(client_cpu[:2])
            served.client_share.append(used / seconds / count_cpus())
            served.latencies += latencies
    return alone, served


def print_row(name: str, clients: int, alone: Measurement, served: Measurement) -> None:
    rates = sorted(mine / theirs for mine, theirs in zip(alone.wall, served.wall))
    cpu = statistics.median(alone.cpu) / statistics.median(served.cpu)
    p50, p99 = np.percentile(served.latencies, [50, 99])
    cells = [
        name,
        clients,
        f"{1 / statistics.median(alone.wall):.2f}",
        f"{1 / statistics.median(served.wall):.2f}",
        f"{statistics.median(rates):.2f} ({rates[0]:.2f} to {rates[-1]:.2f})",
        f"{cpu:.2f}",
        f"{100 * statistics.median(served.client_share):.1f}%",
        f"{p50:.2f}",
        f"{p99:.2f}",
    ]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", nargs="+", default=["onnx", "ray"], choices=["onnx", "ray"])
    parser.add_argument("--model", default="vit_b16_in1k_linear", help="a model with classes")
    parser.add_argument("--clients", nargs="+", type=int, default=[200, 16])
    parser.add_argument("--images", type=int, default=200, help="of each round")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    print(
        "| server | clients | model alone, images/s | served, images/s | served / alone | CPU time, alone / served | clients, of all CPU time | p50, s | p99, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = swag_models.load_model(options.model, pretrained=False)
        publish.save(model, folder / "model", license="other")
        (folder / "jpegs").mkdir()
        bodies = [path.read_bytes() for path in make_images(folder / "jpegs", options.images)]
        for server in options.server:
            if server == "onnx":
                export.export_model(folder / "model", folder / "model.onnx")
                command = ["onnx_asgi.py", str(folder / "model.onnx"), "--batch-size", str(BATCH)]
            else:
                replicas = ["--min-replicas", str(count_cpus())]
                command = ["ray_classify.py", str(folder / "model"), *replicas]
            process, url = start_server([str(SERVING / command[0]), *command[1:]])
            try:
                alone = load_alone(server, folder)
                for clients in options.clients:
                    results = measure(url, process, alone, bodies, clients, options.rounds)
                    print_row(f"{server}, {options.model}", clients, *results)
            finally:
                process.terminate()
                process.wait(60)


if __name__ == "__main__":
    main()
