"""Embed a folder of images with Ray Data on several machines; writes Parquet files.

    python examples/ray_embed.py examples/scenes embeddings/ [model]

On a cluster, all machines share the folder. Each actor uses one CPU, or a GPU with `num_gpus=1` in
`map_batches` and `device="cuda"` in the Embedder.
"""

import logging
import os
import sys

import numpy as np
import ray

from swag_models.inference import Embedder
from swag_models.inference.image_sources import find_images

if len(sys.argv) < 3:
    sys.exit("usage: python examples/ray_embed.py FOLDER OUTPUT [MODEL]")
folder, output, *model = sys.argv[1:]


class Embed:
    def __init__(self):
        self.embedder = Embedder(*model or ["regnety_nano_hashtags"], fast=True, workers=1)

    def __call__(self, batch):
        vectors, names, _ = self.embedder(list(batch["name"]))  # unreadable images have no row
        return {"name": np.array(names), "embedding": vectors.numpy()}


os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use
ray.init(include_dashboard=False, logging_level="error")
ray.data.DataContext.get_current().enable_progress_bars = False
logging.disable(logging.WARNING)
names = ray.data.from_items([{"name": image.name} for image in find_images(folder)])
actors = ray.data.ActorPoolStrategy(size=max(1, int(ray.available_resources()["CPU"]) - 1))
names.map_batches(Embed, compute=actors, batch_size=64).write_parquet(output)
print(f"{ray.data.read_parquet(output).count()} embeddings in {output}")
