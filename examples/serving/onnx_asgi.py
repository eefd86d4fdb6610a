"""Classify images over HTTP with an exported model: Starlette, uvicorn, onnxruntime, no torch.

    swag-models export regnety_200mf_hashtags small.onnx
    python examples/serving/onnx_asgi.py small.onnx
    curl --data-binary @swag_models/app/examples/butterfly.jpg 'http://127.0.0.1:8000/classify?top_k=3'

Images that arrive together are one batch. docs/serving.md has the limits.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime would report its use

import http_images
import numpy as np
import onnxruntime
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Route

from swag_models.formatting import describe_error
from swag_models.preprocess import MAX_PIXELS, resized_size
from swag_models.runtime import count_cpus
from swag_models.spec import Preprocess

BATCH_SECONDS = 0.005  # that a batch waits for more images if it is not full
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

parser = argparse.ArgumentParser(description="Classify images over HTTP with an exported model.")
parser.add_argument("file", help="written by: swag-models export NAME file.onnx")
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int, default=8000)
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument(
    "--device", choices=["cpu", "gpu"], default=os.environ.get("DEVICE", "cpu"), help="or $DEVICE"
)
options = parser.parse_args()
if not 0 <= options.port < 65536:
    parser.error(f"invalid --port {options.port}: allowed: 0 to 65535")
if options.device == "gpu":
    onnxruntime.preload_dlls()  # CUDA and cuDNN from NVIDIA's packages
provider = "CUDAExecutionProvider" if options.device == "gpu" else "CPUExecutionProvider"
settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = count_cpus()
try:
    session = onnxruntime.InferenceSession(options.file, settings, [provider])
    metadata = session.get_modelmeta().custom_metadata_map
    preprocess, classes = json.loads(metadata["preprocess"]), json.loads(metadata["classes"])
    multi_label = json.loads(metadata.get("multi_label", "false"))
    pairs = {name: tuple(preprocess.pop(name)) for name in ("image_size", "mean", "std")}
    preprocessing = Preprocess(**pairs, **preprocess)
except Exception as error:  # onnxruntime's errors have no class in common
    sys.exit(f"cannot serve {options.file}: {describe_error(error)}")
if provider not in session.get_providers():  # onnxruntime would use the CPU instead
    sys.exit("onnxruntime cannot use a GPU: install onnxruntime-gpu and a driver, or --device cpu")
if classes is None:
    sys.exit(f"{options.file} has no names of classes; export a model that has them")

readers = ThreadPoolExecutor(count_cpus())  # the most images that are decoded at once
places = asyncio.Semaphore(http_images.MAX_REQUESTS)
queue: asyncio.Queue = asyncio.Queue()  # of (image, future), at most one for each place


def prepare(body: bytes) -> np.ndarray:
    """Decode, resize and crop an image file: float32 (3, H, W)."""
    image, (height, width) = http_images.decode(body), preprocessing.size
    new_height, new_width = resized_size(preprocessing, image.height, image.width)
    if new_height * new_width > MAX_PIXELS:
        raise HTTPException(422, "the image is too narrow; crop it first")
    image = image.resize((new_width, new_height), FILTERS[preprocessing.interpolation])
    left, top = round((new_width - width) / 2), round((new_height - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
    normalised = (pixels - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)
    return normalised.transpose(2, 0, 1)


def infer(images: list[np.ndarray]) -> np.ndarray:
    """Probabilities (N, K) of N images."""
    inputs = np.stack(images)
    if session.get_inputs()[0].shape[1] == 1:
        inputs = inputs.mean(axis=1, keepdims=True)  # greyscale
    (logits,) = session.run([metadata["output"]], {metadata["input"]: inputs})
    if multi_label:
        return (1 + np.tanh(logits / 2)) / 2  # sigmoid
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


async def run_batches() -> None:
    """Run the model on the images in the queue, in order."""
    while True:
        batch = [await queue.get()]
        if queue.qsize() + 1 < options.batch_size:
            await asyncio.sleep(BATCH_SECONDS)
        while not queue.empty() and len(batch) < options.batch_size:
            batch.append(queue.get_nowait())
        images, answers = zip(*batch)
        try:
            rows = await asyncio.to_thread(infer, images)
        except Exception as error:  # these requests fail, not the service
            print(f"error: {describe_error(error)}", file=sys.stderr)
            rows = [None] * len(batch)
        for answer, row in zip(answers, rows):
            if not answer.done():  # cancelled when the server stops
                answer.set_result(row)


async def classify(request):
    top_k = http_images.read_top_k(request)
    if places.locked():
        raise HTTPException(503, "too many requests; try again later", {"Retry-After": "1"})
    async with places:
        body, loop = await http_images.read_body(request), asyncio.get_running_loop()
        image = await loop.run_in_executor(readers, prepare, body)
        answer = loop.create_future()
        queue.put_nowait((image, answer))
        if (row := await answer) is None:
            raise HTTPException(500, "the model failed; the log has the reason")
    best = np.argsort(-row, kind="stable")[:top_k]
    return http_images.make_answer((classes[i], float(row[i])) for i in best)


async def health(request):
    return JSONResponse({"status": "ok", "waiting": queue.qsize()})


@contextlib.asynccontextmanager
async def run(app):
    task = asyncio.create_task(run_batches())
    yield
    task.cancel()


app = Starlette(
    routes=[Route("/classify", classify, methods=["POST"]), Route("/health", health)],
    exception_handlers={HTTPException: http_images.show_error},
    lifespan=run,
)
limits = {"limit_concurrency": 1000, "timeout_graceful_shutdown": http_images.MAX_BODY_SECONDS}
uvicorn.run(app, host=options.host, port=options.port, access_log=False, **limits)
