"""Subcommands that measure how a model transfers to other classes: probe, zeroshot."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from swag_models.cli.common import FAILED, OK, AddCommand, add_json_option
from swag_models.cli.measuring import (
    MODEL_HELP,
    add_measuring_options,
    add_skip_option,
    open_model,
    parse_shots,
    report_skipped,
    shared_work,
)
from swag_models.cli.output import print_data, print_text
from swag_models.errors import ConfigError
from swag_models.paths import expand_path

if TYPE_CHECKING:
    from swag_models.recipe.evaluation.zero_shot.results import ZeroShotResult


def probe(options: argparse.Namespace) -> int:
    """Evaluate frozen features by nearest neighbours, and by linear classifiers with few labels."""
    from swag_models.recipe.evaluation.probes.probe import probe
    from swag_models.recipe.evaluation.probes.probe_files import format_probes, write_probes

    with shared_work() as dist:
        model, loading = open_model(options)
        probes = probe(
            model,
            options.train,
            options.test,
            methods=options.methods.split(","),
            shots=[parse_shots(text) for text in options.shots.split(",")],
            splits=options.splits,
            cache=options.cache,
            features=options.features,
            output=options.output,
            init=options.model,
            settings=options.set,
            dist=dist,
            **loading,
        )
        if options.output:
            dist.run_on_main(lambda: write_probes(probes, options.output))
        if dist.is_main:  # every rank has the same results
            if options.json:
                print_data(json.dumps([result.to_dict() for result in probes], indent=2))
            else:
                print_text(format_probes(probes))
    return FAILED if any(result.skipped for result in probes) else OK


def zeroshot(options: argparse.Namespace) -> int:
    """Classify images by means of hashtags and WordNet, without training or labels."""
    from swag_models.recipe.classes.wordnet_mapping import (
        HashtagMapping,
        parse_targets,
    )
    from swag_models.recipe.evaluation.models import find_named_classes
    from swag_models.recipe.evaluation.zero_shot import classifier
    from swag_models.recipe.evaluation.zero_shot.logits import find_classes, is_labelled
    from swag_models.recipe.evaluation.zero_shot.report import write_zero_shot
    from swag_models.recipe.evaluation.zero_shot.results import ZeroShotConfig
    from swag_models.recipe.wordnet import WordNet

    wordnet = WordNet.load(options.wordnet)
    if (classes := options.targets or find_classes(options.data)) is None:
        raise ConfigError(
            f"{options.data} has no sub-folders of classes; pass --targets, for example "
            "--targets imagenet-1k"
        )
    if options.ablation and not is_labelled(options.data):
        raise ConfigError(
            f"--ablation compares accuracies, but {options.data} has no labels; omit it"
        )
    # all arguments are checked before the model is loaded
    targets = parse_targets(
        classes,
        wordnet,
        senses=options.senses,
        skip_unmatched=options.skip_unmatched,
        model_classes=find_named_classes(options.model),
    )
    mapping = HashtagMapping(options.mapping, options.decay, options.threshold, options.best)
    if options.ablation:
        configs = classifier.list_zero_shot_configs(mapping)
    else:
        configs = [ZeroShotConfig(options.platt, mapping, options.aggregation)]
    output = expand_path(options.output, "--output") if options.output else None
    with shared_work() as dist:
        model, loading = open_model(options)
        if options.ablation and model.multi_label:  # Platt scaling is for a softmax
            configs = [config for config in configs if not config.platt]
        results = classifier.run_ablation(
            model,
            options.data,
            targets,
            wordnet,
            configs,
            unlabelled=options.unlabelled,
            skip_unmatched=options.skip_unmatched,
            dist=dist,
            scratch=output and output.parent,
            **loading,
        )
        if output:
            dist.run_on_main(lambda: write_zero_shot(results, output))
        # all results are for the same images, so the skipped ones are the same
        skipped = dist.run_on_main(lambda: results[0].skipped)
        if dist.is_main:
            _print_zero_shot(results, options.json)
            report_skipped(skipped)
    return FAILED if skipped else OK


def _print_zero_shot(results: "Sequence[ZeroShotResult]", as_json: bool) -> None:
    """Print accuracies, or without labels the predictions."""
    from swag_models.recipe.evaluation.zero_shot import report

    if not results[0].labelled:
        if as_json:
            print_data(report.format_predictions_jsonl(results[0]))
        else:
            print_text(report.format_predictions(results[0]))
    elif as_json:
        print_data(json.dumps([result.to_dict() for result in results], indent=2))
    else:
        print_text(report.format_zero_shot(results))


def add_commands(add: AddCommand) -> None:
    """Declare the subcommands of this module and their options, under `swag-models recipe`."""
    _add_probe_options(
        add(
            "probe",
            probe,
            "swag-models recipe probe vit_b16 --train pets/train --test pets/test --shots 1,5,all",
        )
    )
    command = add(
        "zeroshot",
        zeroshot,
        "swag-models recipe zeroshot vit_nano_hashtags --data held_out/ --wordnet scenes/wordnet",
    )
    _add_zeroshot_options(command)
    _add_mapping_options(command)
    add_measuring_options(command)


def _add_probe_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help=MODEL_HELP)
    data = "packed shards, a folder with a sub-folder per class, or a Hugging Face dataset on disk"
    command.add_argument("--train", required=True, metavar="DATA", help=f"training images: {data}")
    command.add_argument(
        "--test",
        required=True,
        metavar="DATA",
        help="test images in any of these forms, with the same classes",
    )
    command.add_argument(
        "--methods",
        default="knn,logistic",
        help="comma-separated: knn, logistic, sgd (default: knn,logistic)",
    )
    command.add_argument(
        "--shots",
        default="1,2,5,10,1%,10%,all",  # argparse expands % in the help text only
        help="training images per class for logistic: numbers, shares or all "
        "(default: 1,2,5,10,1%%,10%%,all)",
    )
    command.add_argument(
        "--splits",
        type=int,
        default=5,
        help="number of random training subsets for each number of shots (default: 5)",
    )
    command.add_argument(
        "--cache",
        metavar="FOLDER",
        help="folder of cached features (default: in the download cache)",
    )
    command.add_argument(
        "--features",
        choices=("float16", "float32"),
        default="float16",
        help="dtype of cached features (default: float16)",
    )
    command.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="output folder for probes.json, probes.md and the training run of sgd",
    )
    command.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="for sgd: override a preset value (repeatable)",
    )
    add_json_option(command)
    add_measuring_options(command)


def _add_zeroshot_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model",
        help="name, folder or hf-hub:org/repo of a model whose classes are hashtags with WordNet "
        "ids",
    )
    command.add_argument(
        "--data",
        required=True,
        help="labelled images (shards, a dataset, or a sub-folder per target), or images without "
        "labels",
    )
    command.add_argument(
        "--targets",
        help="classes to predict: imagenet-1k, a file, or words,with,commas "
        "(default: the classes of the data)",
    )
    command.add_argument(
        "--senses",
        choices=("context", "first", "all"),
        default="context",
        help="which senses of words to use as targets: the one that people mean on images "
        "(context, the default), the first in WordNet's order, or all",
    )
    command.add_argument(
        "--wordnet",
        metavar="FOLDER",
        help="folder of the WordNet 3.0 database (default: searches the usual folders)",
    )
    command.add_argument(
        "--unlabelled",
        metavar="FOLDER",
        help="images for Platt scaling (default: those of --data)",
    )
    add_skip_option(command, "leave out images of classes that are no target or no noun")
    command.add_argument(
        "--ablation",
        action="store_true",
        help="compare every mapping and aggregation, with and without Platt scaling",
    )
    command.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="output folder for zeroshot.json, zeroshot.md and predictions.jsonl",
    )
    add_json_option(command)


def _add_mapping_options(command: argparse.ArgumentParser) -> None:
    """Declare how hashtags are mapped to targets, and their probabilities combined."""
    command.add_argument(
        "--mapping",
        choices=("same", "hyponyms", "hypernyms", "related", "path", "wup"),
        default="related",
        help="how hashtags are mapped to targets (default: related)",
    )
    command.add_argument(
        "--decay",
        type=float,
        default=0.5,
        help="factor of the weight for each step up or down in WordNet (default: 0.5)",
    )
    command.add_argument(
        "--threshold",
        type=float,
        help="ignore smaller weights (default: 1/3 for path, 0.8 for wup, otherwise none)",
    )
    command.add_argument(
        "--best",
        type=int,
        metavar="COUNT",
        help="use only the hashtags with the greatest weights for each target (default: all)",
    )
    command.add_argument(
        "--aggregation",
        choices=("sum", "max"),
        default="sum",
        help="how the hashtags of a target are combined (default: sum)",
    )
    command.add_argument(
        "--no-platt",
        dest="platt",
        action="store_false",
        help="skip Platt scaling, which makes all hashtags equally frequent",
    )
