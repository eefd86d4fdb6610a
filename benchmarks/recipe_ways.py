"""Ways to train, to read training data, to curate and to probe, of this library and its peers."""

import argparse
import functools
import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from measure import Cost, Maker, Way
from row import Context

NUM_CLASSES = 1000
READER_BATCH, FEED_BATCH = 64, 32
SMALL_MODEL = "vit_nano_hashtags"
BUFFERED = 4  # batches that workers may have prepared before the measurement
at_exit = ExitStack()  # process groups of torch.distributed, closed when the process ends


def prepare_step(context: Context, batch: int, *, arch: str) -> dict[str, Maker]:
    """One training step in float32, from uint8 pixels: the trainer's, and the usual with timm."""
    import torch

    pixels = torch.randint(256, (batch, 3, 224, 224), dtype=torch.uint8)
    labels = torch.randint(NUM_CLASSES, (batch,))
    return {
        "swag_models": functools.partial(make_own_step, arch, pixels, labels),
        "timm": functools.partial(make_timm_step, arch, pixels, labels),
    }


def make_own_step(arch: str, pixels: Any, labels: Any) -> Way:
    """A step of the trainer, with its checks of the loss."""
    import torch

    from swag_models.recipe.config import Optimizer, Run
    from swag_models.recipe.data.collate import Batch
    from swag_models.recipe.training.classes import Classes
    from swag_models.recipe.training.distributed import init_distributed
    from swag_models.recipe.training.train_state import make_train_state

    dist = at_exit.enter_context(init_distributed(torch.device("cpu")))
    run = Run(
        arch=arch,
        image_size=224,
        batch_size=len(pixels),
        steps=1000,
        optimizer=Optimizer("adamw", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    )
    state = make_train_state(run, Classes(NUM_CLASSES), dist)
    ids = [str(number) for number in range(len(pixels))]
    batch = Batch(pixels, [[label] for label in labels.tolist()], ids)

    def step() -> None:
        state.model.train()
        loss, norm = state.compute_gradients(batch)
        assert torch.isfinite(loss)
        state.update_weights(norm, copy_average=False)
        state.end_step()

    return step


def make_timm_step(arch: str, pixels: Any, labels: Any) -> Way:
    """A step as in timm's train.py, with channels last as in the trainer."""
    import timm
    import torch
    from throughput import PEERS
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.optim import create_optimizer_v2

    model = timm.create_model(PEERS[arch][1], num_classes=NUM_CLASSES).train()
    model = model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-4, weight_decay=0.05, betas=(0.9, 0.999))
    mean, std = (
        torch.tensor([255 * value for value in values]).view(1, 3, 1, 1)
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )

    def step() -> None:
        images = pixels.float().sub_(mean).div_(std)
        images = images.contiguous(memory_format=torch.channels_last)
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        assert torch.isfinite(loss)
        optimizer.step()
        optimizer.zero_grad()

    return step


def prepare_loop(context: Context, batch: int, *, arch: str) -> dict[str, Maker]:
    """The whole loop from JPEGs, and timm's train.py; each run starts a process."""
    from train import make_folder, measure_ours, measure_timm

    steps = 2 if context.quick else 3
    options = argparse.Namespace(
        batch=batch, steps=steps, workers=1, precision="fp32", amp=False, ema=False, device="cpu"
    )
    options.timm_script = context.timm_script
    data = make_folder(context.folder / "data", (2 * steps + 10) * batch)
    runs = itertools.count()

    def run(measure: Callable[..., Any]) -> Cost:
        output = context.folder / f"run{next(runs)}"
        speed = measure(arch, data, output, options)
        shutil.rmtree(output, ignore_errors=True)
        return Cost(batch / speed.rate)

    def make_timm() -> Way:
        if not context.timm_script:
            raise FileNotFoundError("timm's wheel has no train.py; pass --timm-script")
        return functools.partial(run, measure_timm)

    return {
        "swag_models": lambda: functools.partial(run, measure_ours),
        "timm's train.py": make_timm,
    }


def prepare_loss(context: Context, batch: int) -> dict[str, Maker]:
    """Forward and backward passes of a loss over 27,000 classes, one thread."""
    import torch
    from loss import make_losses, step

    torch.set_num_threads(1)
    losses = make_losses(27_000, batch, "cpu")
    logits = torch.randn(batch, 27_000, requires_grad=True)
    labels = {
        "swag_models, 1 to 5 classes": "softmax, 1 to 5 classes",
        "F.cross_entropy, one class": "F.cross_entropy, one label",
        "F.cross_entropy, dense targets": "F.cross_entropy, dense",
    }
    return {
        label: lambda name=name: functools.partial(step, losses[name], logits)
        for label, name in labels.items()
    }


def prepare_reader(context: Context, batches: int, *, workers: int) -> dict[str, Maker]:
    """Shards of JPEGs of 500 px, decoded, cropped and flipped, with equal shuffle buffers."""
    import torch
    from reader import TRANSFORMS, make_shards, read_with_loader, read_with_webdataset
    from train import measure_feed

    torch.set_num_threads(1)
    # both fill the last batch with what is left, so that one more is enough for all to be full
    shards = make_shards(context.folder, (batches + BUFFERED + 1) * READER_BATCH)
    transform = TRANSFORMS["decode, crop to 224, flip"]

    def make(read: Callable[..., Any]) -> Way:
        return lambda: measure_feed(
            iter(read(shards, transform, workers, READER_BATCH)), batches, BUFFERED
        )

    return {
        "swag_models": lambda: make(read_with_loader),
        "webdataset": lambda: make(read_with_webdataset),
    }


def prepare_feed(context: Context, batches: int, *, workers: int) -> dict[str, Maker]:
    """A folder of JPEGs of 400 x 300 px to normalised float32 batches of 32."""
    from train import feed_ours, feed_timm, make_folder, measure_feed

    options = argparse.Namespace(batch=FEED_BATCH, size=224)
    data = make_folder(context.folder / "data", (2 * batches + 10) * FEED_BATCH)

    def make(feed: Callable[..., Iterator[Any]]) -> Way:
        return lambda: measure_feed(feed(data, workers, options), batches, BUFFERED)

    return {
        "swag_models": lambda: make(feed_ours),
        "timm": lambda: make(feed_timm),
        "torchvision + DataLoader": lambda: make(feed_torchvision),
    }


def feed_torchvision(data: Path, workers: int, options: argparse.Namespace) -> Iterator[Any]:
    """Batches of torchvision's ImageFolder and transforms, as in its training references."""
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import InterpolationMode, v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(options.size, interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ]
    )
    loader = torch.utils.data.DataLoader(
        ImageFolder(data, transform), options.batch, shuffle=True, num_workers=workers
    )
    for images, _ in loader:
        yield images


def prepare_embed(context: Context, images: int) -> dict[str, Maker]:
    """A folder of JPEGs of 500 px to features, with a small model of the same size."""
    from embed import make_images

    import swag_models

    folder = context.folder / "class"
    folder.mkdir()
    paths = make_images(folder, images)
    size = swag_models.get_spec(SMALL_MODEL).image_size

    def make_ours(fast: bool) -> Way:
        from swag_models.inference import Embedder

        embedder = Embedder(SMALL_MODEL, fast=fast)
        return lambda: embedder(paths)

    def make_usual() -> Way:
        import timm
        import torch
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import InterpolationMode, v2
        from train import TIMM

        name, changes, _ = TIMM["vit_nano"]
        model = timm.create_model(name, num_classes=0, **changes).eval()
        transform = v2.Compose(
            [
                v2.Resize(size, interpolation=InterpolationMode.BICUBIC),
                v2.CenterCrop(size),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            ]
        )
        loader = torch.utils.data.DataLoader(ImageFolder(context.folder, transform), 32)
        return torch.inference_mode()(lambda: torch.cat([model(batch) for batch, _ in loader]))

    return {
        "swag_models, fast": lambda: make_ours(True),
        "swag_models, exact": lambda: make_ours(False),
        "torchvision + DataLoader + timm": make_usual,
    }


def prepare_curate(context: Context, posts: int) -> dict[str, Maker]:
    """Posts with 5 hashtags to labels; the SQL is given the matching of hashtags to synsets."""
    from curate import CURATE, SQL, make_posts, run

    path, output = context.folder / "posts.parquet", context.folder / "curated"
    make_posts(path, posts, context.wordnet)
    limits = ["4GB", 2]  # of memory, and threads

    def curate() -> Cost:
        shutil.rmtree(output, ignore_errors=True)
        cpu, wall, _ = run(CURATE, path, output, context.wordnet or "", *limits)
        return Cost(wall, cpu)

    def query() -> Cost:
        files = [context.folder / "sql.parquet", context.folder / "urls.parquet"]
        cpu, wall, _ = run(SQL, path, *files, output / "steps", *limits, context.folder / "scratch")
        return Cost(wall, cpu)

    return {"swag_models": lambda: curate, "DuckDB SQL": lambda: query}


def prepare_neighbours(context: Context, features: int, *, k: int) -> dict[str, Maker]:
    """Exact nearest neighbours of 512 queries of width 768."""
    from knn import draw_features, find_neighbours

    bank, queries = draw_features(features, 768, seed=0), draw_features(512, 768, seed=1)

    def make_faiss() -> Way:
        import faiss
        import torch

        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatIP(768)
        index.add(bank)
        return lambda: index.search(queries, k)

    def make_sklearn() -> Way:
        from sklearn.neighbors import NearestNeighbors

        index = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine").fit(bank)
        return lambda: index.kneighbors(queries)

    return {
        "swag_models": lambda: lambda: find_neighbours(bank, queries, k),
        "faiss": make_faiss,
        "scikit-learn": make_sklearn,
    }


def prepare_logistic(context: Context, images: int, *, C: float) -> dict[str, Maker]:  # noqa: N803
    """Logistic regression on features of width 384, 100 classes, to an objective not above the peer's."""
    import warnings

    from logistic import draw_features

    from swag_models.recipe.evaluation.probes.logistic_regression import fit_logistic

    features, labels = draw_features(images, 384, 100)
    tolerance = 1e-4

    def make_sklearn() -> Way:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        warnings.simplefilter("ignore", ConvergenceWarning)
        return lambda: LogisticRegression(C=C, tol=tolerance, max_iter=1000).fit(features, labels)

    return {
        # with a third of the tolerance its objective is not higher, see logistic.py
        "swag_models": lambda: (
            lambda: fit_logistic(features, labels, 100, C, tolerance=tolerance / 3)
        ),
        "scikit-learn": make_sklearn,
    }
