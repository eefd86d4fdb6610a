"""Work of ranks that share a pass. In a module of its own, because each rank imports it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as torch_dist
from PIL import Image

from swag_models.errors import ConfigError, OutputError
from swag_models.recipe.data.collate import Batch
from swag_models.recipe.data.eval_loader import open_eval_loader
from swag_models.recipe.evaluation.row_pass import CollectedRows, collect_rows
from swag_models.recipe.training.distributed import DistContext

COUNT, BATCH = 23, 3


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def compute(batch: Batch) -> tuple[np.ndarray[Any, Any], ...]:
    """Two outputs of different type and width for each image."""
    means = batch.images.double().mean((1, 2, 3)).numpy()
    return np.stack([means, means**2], 1), (1000 * means).astype(np.int64)[:, None]


def collect(
    data: Any, dist: DistContext, folder: Path, work: Any = compute, workers: int = 0
) -> CollectedRows:
    loader = open_eval_loader(
        data,
        to_tensor,
        batch_size=BATCH,
        rank=dist.rank,
        world_size=dist.world_size,
        workers=workers,
    )
    rows = collect_rows(loader, work, dist, folder, batch_size=BATCH)
    assert loader.seen + sum(loader.skipped.values()) == COUNT
    return rows


def work_on_rank(folder: Path, data: dict[str, Any]) -> None:
    """Collect the rows of two kinds of data, then meet three problems and write the errors."""
    rank, count = torch_dist.get_rank(), torch_dist.get_world_size()
    dist = DistContext(rank, count, torch.device("cpu"))
    for kind in ("folder", "shards"):
        rows = collect(data[kind], dist, folder)
        assert (rank == 0) == bool(rows.names)
        if rank == 0:
            np.savez(folder / f"{kind} {count}.npz", *[stored[:] for stored in rows.outputs])
            (folder / f"{kind} {count}.json").write_text(json.dumps([rows.names, rows.classes]))

    def fail(batch: Batch) -> tuple[np.ndarray[Any, Any], ...]:
        if "b/01.png" in batch.ids:
            raise ConfigError(f"rank {rank} fails")
        return compute(batch)

    problems: dict[str, tuple[Any, Path, Any]] = {
        "compute": (data["folder"], folder, fail),
        "data": (data["folder" if rank == 0 else "other"], folder, compute),
        "disk": (data["folder"], next(data["folder"].rglob("00.png")), compute),  # not a folder
    }
    for problem, (source, target, work) in problems.items():
        try:
            collect(source, dist, target, work)
        except (ConfigError, OutputError) as error:
            (folder / f"{problem} {count} {rank}").write_text(str(error))
