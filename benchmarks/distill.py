"""Distillation against training from scratch, and a head on stored features against one on images.

    python -m studies scenes scenes --posts 6000
    swag-models recipe curate scenes/posts.jsonl -o curated --wordnet scenes/wordnet --min-images 10
    swag-models recipe pack --labels curated/labels.parquet --images scenes/posts.jsonl -o shards
    python benchmarks/distill.py scenes/held_out shards [--students vit_nano] [--steps 400]

Every student sees the same number of images in the same number of steps, with the same optimizer:
from scratch, it learns the hashtags of the packed images; distilled, it learns from the outputs of
the teacher on them, without hashtags. Features are compared by the top-1 accuracy of the 20 nearest
neighbours, from one half of the labelled held-out images to the other, in percent.

The head is trained on all held-out images for a number of epochs, in seconds of CPU time.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from swag_models.formatting import markdown_table
from swag_models.inference import Embedder
from swag_models.inference.embed import write_embeddings
from swag_models.recipe.config_overrides import override
from swag_models.recipe.data.datasets import ImageDataset, open_image_folder
from swag_models.recipe.evaluation.models import open_evaluated_model
from swag_models.recipe.evaluation.probes.probe import probe
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.distill import distill
from swag_models.recipe.training.trainer import train

METHODS = {
    "distilled, features": (),
    "distilled, probabilities": ("distill.feature_weight=0", "distill.logit_weight=1"),
    "distilled, both": ("distill.logit_weight=1",),
}
SCRATCH = "from scratch, hashtags"
HEAD_EPOCHS = 10


def halve(data: ImageDataset) -> tuple[ImageDataset, ImageDataset]:
    """Even and odd images of every class."""
    halves = [
        {index: data.labels[index] for index in range(first, len(data), 2)} for first in (0, 1)
    ]
    even, odd = (data.relabel(half, data.class_names, data.num_classes) for half in halves)
    return even, odd


def measure_neighbours(model: str | Path, data: ImageDataset, cache: Path) -> float:
    """20-NN accuracy in percent."""
    evaluated = open_evaluated_model(str(model))
    results = probe(evaluated, *halve(data), methods=["knn"], cache=cache)
    return next(result.mean for result in results if result.settings["k"] == 20)


def compare_students(
    student: str, teacher: str, data: ImageDataset, shards: str, steps: int, seeds: int
) -> list[Sequence[str]]:
    """Rows of method, mean and standard deviation over seeds, and difference from scratch."""
    settings = [f"steps={steps}", "batch_size=64", "optimizer.lr=0.004", "checkpoint.every=100000"]
    hashtags = get_preset(f"{student}_hashtags").run
    accuracies: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "features")
        for seed in range(seeds):
            for number, method in enumerate((SCRATCH, *METHODS)):
                start = time.process_time()
                output = Path(folder, f"{seed}-{number}")
                seeded = [*settings, f"seed={seed}", *METHODS.get(method, ())]
                if method == SCRATCH:
                    model = train(override(hashtags, seeded), shards, output, progress=False)
                else:
                    model = distill(
                        student, teacher, shards, output, settings=seeded, progress=False
                    )
                score = measure_neighbours(model, data, cache)
                print(f"# {student} {method} {seed}: {score:.1f}, ", end="")
                print(f"{time.process_time() - start:.0f} s", flush=True)
                accuracies.setdefault(method, []).append(score)
        reference = measure_neighbours(teacher, data, cache)
    (scratch, *_) = (statistics.mean(values) for values in accuracies.values())
    rows = [(student, f"teacher: {teacher}", f"{reference:.1f}", "")]
    for method, values in accuracies.items():
        mean, spread = statistics.mean(values), statistics.stdev(values) if seeds > 1 else 0.0
        rows.append((student, method, f"{mean:.1f} ± {spread:.1f}", f"{mean - scratch:+.1f}"))
    return rows


def compare_heads(model: str, held_out: Path) -> list[Sequence[str]]:
    """Rows of data, CPU seconds to embed and to train, and speed."""
    run = override(
        get_preset(f"{model}_linear").run, [f"epochs={HEAD_EPOCHS}", f"init={model}_hashtags"]
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.process_time()
        train(run, held_out, folder / "images", progress=False)
        on_images = time.process_time() - begin
        begin = time.process_time()
        embedder = Embedder(f"{model}_hashtags", device="cpu")
        write_embeddings(embedder, held_out, folder / "e.parquet", progress=False)
        embedding = time.process_time() - begin
        begin = time.process_time()
        train(run, held_out, folder / "head", embeddings=folder / "e.parquet", progress=False)
        on_features = time.process_time() - begin
    total = embedding + on_features
    return [
        (model, "images", "", f"{on_images:.1f}", "1.0"),
        (model, "embeddings", f"{embedding:.1f}", f"{on_features:.1f}", f"{on_images / total:.1f}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("held_out", type=Path, help="folder of labelled images")
    parser.add_argument("shards", help="packed images with hashtags")
    parser.add_argument("--students", nargs="*", default=["vit_nano", "regnety_nano"])
    parser.add_argument("--teacher", default="regnety_nano_hashtags")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--heads", nargs="*", default=["vit_nano", "regnety_nano"])
    options = parser.parse_args()
    logging.getLogger("swag_models").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    data = open_image_folder(options.held_out)
    rows = [
        row
        for student in options.students
        for row in compare_students(
            *(student, options.teacher, data, options.shards, options.steps, options.seeds)
        )
    ]
    if rows:
        print(markdown_table(("student", "trained", "20-NN, %", "against scratch"), rows))
    rows = [row for model in options.heads for row in compare_heads(model, options.held_out)]
    if rows:
        print(f"\nThe head, {HEAD_EPOCHS} epochs:\n")
        print(markdown_table(("model", "data", "embed, s", "train, s", "times as fast"), rows))


if __name__ == "__main__":
    main()
