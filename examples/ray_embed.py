"""Embed a folder with Ray Data, for more pictures than one machine can take: one engine in each actor, Parquet files out.

    python examples/ray_embed.py examples/scenes embeddings/ [model]

On a cluster the folder is on a disk that all its machines share. Each actor takes a processor; with `num_gpus=1` in
`map_batches` and `device="cuda"` in the Embedder it takes a GPU.
"""

import logging
import sys

import numpy as np
import ray

from swag_models.inference.image_sources import find_images
from swag_models.inference.predict import Embedder

folder, output, *model = sys.argv[1:]


class Embed:
    def __init__(self):
        self.embedder = Embedder(*model or ["regnety_nano_hashtags"], fast=True, workers=1)

    def __call__(self, batch):
        found = self.embedder(
            list(batch["name"])
        )  # a picture that cannot be read is logged and has no row
        return {"name": np.array(found.names), "embedding": found.vectors.numpy()}


ray.init(include_dashboard=False, logging_level="error")
ray.data.DataContext.get_current().enable_progress_bars = False
logging.disable(logging.WARNING)
names = ray.data.from_items([{"name": picture.name} for picture in find_images(folder)])
actors = ray.data.ActorPoolStrategy(size=max(1, int(ray.available_resources()["CPU"]) - 1))
names.map_batches(Embed, compute=actors, batch_size=64).write_parquet(output)
print(f"{ray.data.read_parquet(output).count()} embeddings in {output}")
