"""The subcommand that fine-tunes a model on a folder of images: finetune."""

import argparse

from swag_models.cli.common import (
    OK,
    AddCommand,
    add_device_option,
    add_merge_option,
    add_quiet_option,
    read_device,
)
from swag_models.cli.measuring import check_single_process
from swag_models.cli.output import print_line, print_message
from swag_models.cli.train import PREEMPTED
from swag_models.errors import PreemptedError
from swag_models.formatting import count_noun

TITLES = {"top1": "top-1", "mean_per_class": "mean over classes"}


def finetune(options: argparse.Namespace) -> int:
    """Make a classifier from a folder of images, or resume an interrupted run."""
    from swag_models.finetuning import finetune

    check_single_process()
    try:
        result = finetune(
            options.folder,
            options.output,
            model=options.model,
            labels=options.labels,
            val=options.val,
            holdout=options.holdout,
            linear=options.linear,
            head_init=options.head_init,
            epochs=options.epochs,
            lr=options.lr,
            batch_size=options.batch_size,
            image_size=options.image_size,
            merge_tokens=options.merge_tokens,
            seed=options.seed,
            device=read_device(options),
            settings=options.set,
            name=options.name,
            description=options.description,
            license=options.license,
            progress=not options.quiet,
        )
    except PreemptedError as error:
        print_message(error)
        return PREEMPTED
    if result.metrics:
        measures = ", ".join(
            f"{TITLES.get(name, name)} {value:.1f}% ({low:.1f} to {high:.1f})"
            for name, (value, low, high) in result.metrics.items()
        )
        print_message(f"{count_noun(result.held_out_images, 'held-out image')}: {measures}")
    for reason in result.unreadable:
        print_message(f"skipped: {reason}")
    print_line(result.folder)
    return OK


def add_commands(add: AddCommand) -> None:
    """Declare the subcommand of this module and its options."""
    command = add(
        "finetune", finetune, "swag-models finetune photos/ --model vit_b16 -o photo-classifier"
    )
    command.add_argument(
        "folder",
        help="folder with a sub-folder of images for each class, or with train and val (or test); "
        "or a list of images and labels",
    )
    command.add_argument(
        "--model", required=True, help="model to start from: name, folder or hf-hub:org/repo"
    )
    command.add_argument(
        "-o", "--output", required=True, help="output folder; an interrupted run is resumed"
    )
    command.add_argument(
        "--linear",
        action="store_true",
        help="train only a linear classifier on the frozen model, which is faster",
    )
    command.add_argument(
        "--head-init",
        choices=("random", "hashtags"),
        default="random",
        help="start the classifier at random, or from the model's hashtags of the same names "
        "(default: random)",
    )
    command.add_argument(
        "--labels",
        metavar="FILE",
        help="list of the images and their labels, any number for each (.csv .jsonl .json, COCO)",
    )
    command.add_argument(
        "--val", metavar="FOLDER", help="held-out images, in any of the forms of the folder"
    )
    command.add_argument(
        "--holdout",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="fraction of each class to hold out without --val; 0 for none (default: 0.2)",
    )
    _add_training_options(command)
    command.add_argument("--name", help="name in the model card (default: that of the output)")
    command.add_argument("--description", help="description in the model card")
    command.add_argument("--license", help="license of the weights, for example apache-2.0")
    add_quiet_option(command)


def _add_training_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--epochs", type=float, help="passes over the images (default: 100 of few, 3 of many)"
    )
    command.add_argument(
        "--lr", type=float, help="peak learning rate (default: from the width of the model)"
    )
    command.add_argument(
        "--batch-size", type=int, help="images per step (default: 32, or 64 of many images)"
    )
    command.add_argument(
        "--image-size", type=int, help="image size in pixels (default: the model's)"
    )
    add_merge_option(command)
    command.add_argument(
        "--seed", type=int, default=0, help="seed of the split and the training (default: 0)"
    )
    add_device_option(command)
    command.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="any other setting of a run, as in --set augment.flip=0 (repeatable)",
    )
