"""Subcommands that run models on images: classify, embed, merge, nearest, app."""

import argparse
import json
import signal
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from swag_models.api import get_spec
from swag_models.cli.common import (
    FAILED,
    OK,
    AddCommand,
    add_backend_option,
    add_device_option,
    add_json_option,
    add_merge_option,
    add_quiet_option,
    read_device,
)
from swag_models.cli.output import print_data, print_line, print_message
from swag_models.cli.thresholds import add_threshold_option, read_threshold
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun
from swag_models.runtime import read_environment

if TYPE_CHECKING:
    from swag_models.inference.image_sources import ImageRef

IMAGE_HELP = "files, folders, tar shards or shell patterns; - for one image on stdin"


def classify(options: argparse.Namespace) -> int:
    """Print the most probable classes of each image."""
    spec = get_spec(options.model)  # before torch is imported, since the Hub may be unreachable
    from swag_models.inference.predict import Classifier

    images = _find_images(options.image)
    threshold = read_threshold(options)
    labels = None if options.candidate_labels is None else options.candidate_labels.split(",")
    classifier = Classifier(
        spec, threshold=threshold, candidate_labels=labels, **_get_pipeline_options(options)
    )
    num_skipped = 0
    for name, predictions, reason in classifier.stream(images, options.top_k):
        if reason:
            print_message(f"skipped: {reason}")
            num_skipped += 1
        elif options.json:  # one object per line, so that the output can be streamed
            row = {"image": name, "predictions": [asdict(p) for p in predictions]}
            print_data(json.dumps(row))
        else:
            print_line(name)
            for prediction in predictions:
                print_line(f"  {prediction.probability:7.2%}  {prediction.label}")
            if not predictions:
                print_line("  no class reaches the threshold")
    if num_skipped:
        print_message(f"{num_skipped} of {count_noun(len(images), 'image')} could not be read")
    return FAILED if num_skipped else OK


def embed(options: argparse.Namespace) -> int:
    """Write the features of images to a file; resumable, and runs in parallel with torchrun."""
    spec = get_spec(options.model)  # see `classify`
    from swag_models.inference.embed import write_embeddings
    from swag_models.inference.embeddings_file import check_embeddings_path
    from swag_models.inference.predict import Embedder

    # cheap checks, before the model is loaded
    output = check_embeddings_path(options.output)
    images = _find_images(options.image)
    rank, world_size = read_environment("RANK", 0), read_environment("WORLD_SIZE", 1)
    summary = write_embeddings(
        Embedder(spec, **_get_pipeline_options(options)),
        images,
        output,
        rank=rank,
        world_size=world_size,
        progress=not options.quiet and rank == 0,  # the bars of several processes would overlap
    )
    for image in summary.skipped:
        print_message(f"skipped: {image.reason}")
    num_skipped = len(summary.skipped)
    print_message(
        count_noun(summary.rows, "row")
        + (f", {count_noun(num_skipped, 'image')} could not be read" if num_skipped else "")
    )
    print_line(summary.path)
    return FAILED if num_skipped else OK


def merge(options: argparse.Namespace) -> int:
    """Merge the embeddings of several processes into one file."""
    from swag_models.inference.embed import merge_embeddings

    summary = merge_embeddings(options.part, options.output)
    print_message(count_noun(summary.rows, "row"))
    print_line(summary.path)
    return OK


def nearest(options: argparse.Namespace) -> int:
    """Find the images nearest to an image, in a file that embed wrote."""
    model = None if options.model is None else get_spec(options.model)  # see `classify`
    from swag_models.inference.search import ImageSearch

    images = _find_images(options.image)
    search = ImageSearch(
        options.embeddings,
        model=model,
        device=read_device(options),
        backend=options.backend,
    )
    part, parts = search.part
    if parts > 1:
        print_message(f"{options.embeddings} has part {part + 1} of {parts} of the images")
    if search.skipped:
        print_message(
            f"{count_noun(len(search.skipped), 'image')} could not be read when it was written"
        )
    num_skipped = 0
    for name, neighbours, copies, reason in search(images, options.top_k):
        if reason:
            print_message(f"skipped: {reason}")
            num_skipped += 1
        elif options.json:
            rows = [neighbour._asdict() for neighbour in neighbours]
            print_data(json.dumps({"image": name, "neighbours": rows, "copies": copies}))
        else:
            print_line(name)
            for neighbour in neighbours:
                print_line(f"  {neighbour.similarity:7.4f}  {neighbour.name}")
            for copy in copies:
                print_line(f"     copy  {copy}")
    return FAILED if num_skipped else OK


def app(options: argparse.Namespace) -> int:
    """Serve a web page for trying models on images."""
    from swag_models.app import serve

    def announce(url: str) -> None:
        print_line(url)
        print_message("the page is ready; stop it with Ctrl-C")
        if options.open:
            webbrowser.open(url)

    # by default SIGTERM ends Python without cleanup, which would leave the uploads on disk
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve(
        options.model,
        folder=options.folder,
        merge_tokens=options.merge_tokens,
        host=options.host,
        port=options.port,
        root_path=options.root_path,
        allow_hosts=options.allow_host,
        auth_file=options.auth_file,
        token=options.token,
        ready=announce,
    )
    return OK


def _find_images(paths: Sequence[str]) -> list["ImageRef"]:
    """The images of the arguments of a command, among which - stands for an image on stdin."""
    from swag_models.image_formats import MAX_FILE_BYTES
    from swag_models.inference.image_sources import ImageRef, find_images

    if "-" not in paths:
        return find_images(paths)
    if paths.count("-") > 1:
        raise ConfigError("- is given more than once, and stdin has one image")
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError("- reads an image from stdin, which is a terminal or closed; pipe one")
    # one byte more than is allowed, for the error that says so
    if not (content := sys.stdin.buffer.read(MAX_FILE_BYTES + 1)):
        raise ConfigError("- reads an image from stdin, which is empty; pipe one")
    stdin = ImageRef("stdin", content)
    return find_images([stdin if path == "-" else path for path in paths])


def add_commands(add: AddCommand) -> None:
    """Declare the subcommands of this module and their options."""
    command = add(
        "classify", classify, "swag-models classify photo.jpg --model vit_b16_in1k --top-k 3"
    )
    _add_pipeline_options(command)
    command.add_argument(
        "--top-k",
        type=int,
        help="largest number of classes per image (default: 5, or all with --threshold)",
    )
    add_threshold_option(command, "print every class with at least this probability")
    command.add_argument(
        "--candidate-labels",
        metavar="NAMES",
        help="the only classes to choose from: names,with,commas (default: all classes)",
    )
    add_json_option(command, "print one line of JSON per image")

    command = add("embed", embed, "swag-models embed photos/ --model vit_b16 -o photos.parquet")
    _add_pipeline_options(command)
    command.set_defaults(scaled_decoding=True)
    command.add_argument("-o", "--output", required=True, help="file to write: .parquet or .npy")
    add_quiet_option(command)

    command = add("merge", merge, "swag-models merge photos-0*-of-00002.parquet -o photos.parquet")
    command.add_argument("part", nargs="+", help="files written by the processes of one run")
    command.add_argument("-o", "--output", required=True, help="file to write: .parquet or .npy")

    command = add("nearest", nearest, "swag-models nearest photos.parquet photo.jpg --top-k 5")
    command.add_argument("embeddings", help="file that embed wrote: .parquet or .npy")
    command.add_argument("image", nargs="+", help=IMAGE_HELP)
    command.add_argument(
        "--model",
        help="folder or hf-hub:org/repo of the model that wrote the file, if the catalog lacks it",
    )
    command.add_argument(
        "--top-k", type=int, default=10, help="number of nearest images (default: 10)"
    )
    add_device_option(command)
    add_backend_option(command)
    add_json_option(command, "print one line of JSON per image")

    _add_app_options(add("app", app, "swag-models app --folder ~/Pictures --open"))


def _add_pipeline_options(command: argparse.ArgumentParser) -> None:
    """Declare the images, the model, and the options that `_get_pipeline_options` reads."""
    command.add_argument("image", nargs="+", help=IMAGE_HELP)
    command.add_argument(
        "--model", required=True, help="name, folder or hf-hub:org/repo of the model"
    )
    command.add_argument(
        "--image-size", type=int, help="image size in pixels (default: the model's)"
    )
    add_device_option(command)
    command.add_argument(
        "--dtype",
        help="float32, bfloat16 or float16 (default: float32, or the fastest safe one with --fast)",
    )
    command.add_argument(
        "--fast", action="store_true", help="use the fastest safe setting for the hardware"
    )
    command.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="use torch.compile (default: only with --fast, if it saves time)",
    )
    command.add_argument(
        "--batch-size", type=int, help="images per forward pass (default: 32, or 256 on a GPU)"
    )
    command.add_argument(
        "--workers",
        type=int,
        help="number of threads that read images (default: one per CPU, at most 16)",
    )
    command.add_argument(
        "--scaled-decoding",
        action=argparse.BooleanOptionalAction,
        help="decode JPEGs at 1/2, 1/4 or 1/8 of their size where that is at least 2.7 times the "
        "model's; normalised pixels change by 0.003 to 0.006 (default: in embed, and with --fast)",
    )
    add_merge_option(command)
    add_backend_option(command)


def _get_pipeline_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `InferencePipeline`."""
    names = ("image_size", "dtype", "fast", "compile", "batch_size", "workers", "backend")
    values = {name: getattr(options, name) for name in (*names, "scaled_decoding", "merge_tokens")}
    return {"device": read_device(options), **values}


def _add_app_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        default="regnety_200mf_hashtags",
        help="model to start with: name, folder or hf-hub:org/repo (default: %(default)s)",
    )
    command.add_argument(
        "--folder", default="", help="folder to search for similar images and those of a class"
    )
    add_merge_option(command)
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine only)",
    )
    command.add_argument(
        "--port",
        type=int,
        default=7860,
        help="port to listen on, or 0 for any free port (default: 7860)",
    )
    command.add_argument(
        "--root-path",
        metavar="PATH",
        default="",
        help="path of the page behind a reverse proxy, for example /demo",
    )
    command.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="host name of a reverse proxy under which the page may be requested; repeatable",
    )
    command.add_argument(
        "--auth-file",
        metavar="FILE",
        help="ask for a user name and password; the file has a line user:password for each user",
    )
    command.add_argument(
        "--token",
        action=argparse.BooleanOptionalAction,
        help="ask for a token, which is part of the printed URL and new at each start (default: "
        "if other machines can reach the page and there is no --auth-file)",
    )
    command.add_argument("--open", action="store_true", help="open the page in the browser")
