"""Classify images over HTTP with Ray Serve: replicas of a model, each of which runs batches.

    pip install 'ray[serve]'
    python examples/serving/ray_classify.py regnety_200mf_hashtags
    curl --data-binary @swag_models/app/examples/butterfly.jpg 'http://127.0.0.1:8000/classify?top_k=3'

The model is a name or a folder. /-/healthz is the proxy's health. docs/serving.md has the limits.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use

import http_images
import ray
import torch
from ray import serve
from ray.exceptions import TaskCancelledError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from swag_models import load_classes
from swag_models.errors import ImageError, SwagModelsError
from swag_models.inference import Classifier, Prediction


@serve.deployment(
    max_ongoing_requests=32,  # of a replica
    max_queued_requests=http_images.MAX_REQUESTS,  # others are refused with 503
    logging_config={"enable_access_log": False},
)
class ImageClassifier:
    """A replica: a model in a process of its own, on one CPU."""

    def __init__(self, name: str) -> None:
        self.classifier = Classifier(name)  # on a GPU: device="cuda", fast=True, and num_gpus below
        self.reader = ThreadPoolExecutor(1)  # decodes one image at a time

    async def __call__(self, request: Request) -> Response:
        try:
            top_k, body = http_images.read_top_k(request), await http_images.read_body(request)
            image = await asyncio.get_running_loop().run_in_executor(
                self.reader, self.prepare, body
            )
        except HTTPException as error:
            return await http_images.show_error(request, error)
        except TaskCancelledError:  # the client closed the connection
            return Response(status_code=400)
        predictions = (await self.classify((image, top_k)))[:top_k]
        return http_images.make_answer((x.label, x.probability) for x in predictions)

    def prepare(self, body: bytes) -> torch.Tensor:
        """Decode, resize and crop an image file: uint8 (3, H, W)."""
        try:
            return self.classifier.preprocess.fit(http_images.decode(body))
        except ImageError as error:  # too narrow
            raise HTTPException(422, str(error)) from None

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.01)
    async def classify(self, items: list[tuple[torch.Tensor, int]]) -> list[list[Prediction]]:
        """Predictions for the images of the requests that wait, in one batch."""
        images, top_k = zip(*items)
        return await asyncio.to_thread(self.classifier, list(images), max(top_k))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Classify images over HTTP with Ray Serve.")
    parser.add_argument("model", help="name of a model or folder of a published one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--min-replicas", type=int, default=1)
    parser.add_argument("--max-replicas", type=int, default=4)
    options = parser.parse_args()
    if not 1 <= options.port < 65536:
        parser.error(f"invalid --port {options.port}: allowed: 1 to 65535")
    if not 1 <= options.min_replicas <= options.max_replicas:
        parser.error(f"invalid --min-replicas: allowed: 1 to {options.max_replicas}")
    try:
        load_classes(options.model)  # before any replica tries to start
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        socket.create_server((options.host, options.port), family=family).close()
    except SwagModelsError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: cannot listen on {options.host}, port {options.port}: {error.strerror}")
    autoscaling = {
        "min_replicas": options.min_replicas,
        "max_replicas": options.max_replicas,
        "target_ongoing_requests": 16,  # two batches of each replica
    }
    deployment = ImageClassifier.options(
        autoscaling_config=autoscaling, ray_actor_options={"num_cpus": 1}
    )
    ray.init(include_dashboard=False, logging_level="error")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, not abort as Ray does
    serve.start(http_options={"host": options.host, "port": options.port, "request_timeout_s": 120})
    with contextlib.suppress(KeyboardInterrupt):
        serve.run(deployment.bind(options.model), route_prefix="/classify", blocking=True)
    serve.shutdown()
