"""The subcommand that tells pictures apart by hashtags."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from swag_models.cli.common import (
    Add,
    add_measuring_options,
    open_measured,
    refuse_ranks,
    report_skipped,
)
from swag_models.errors import ConfigError


def zeroshot(options: argparse.Namespace) -> int:
    """Tell pictures apart by hashtags and WordNet, without training or labels."""
    from swag_models.recipe.evaluation.zero_shot.classifier import (
        ZeroShotConfig,
        list_zero_shot_configs,
        run_ablation,
    )
    from swag_models.recipe.evaluation.zero_shot.logits import find_classes, is_labelled
    from swag_models.recipe.evaluation.zero_shot.report import (
        format_predictions,
        format_predictions_jsonl,
        format_zero_shot,
        write_zero_shot,
    )
    from swag_models.recipe.evaluation.zero_shot.targets import parse_targets
    from swag_models.recipe.evaluation.zero_shot.wordnet_mapping import HashtagMapping
    from swag_models.recipe.wordnet import WordNet

    refuse_ranks()
    wordnet = WordNet.load(options.wordnet)
    if (given := options.targets or find_classes(options.data)) is None:
        raise ConfigError(
            f"{options.data} is no folder with a sub-folder for each class; give one, or say what to tell apart, for example "
            "--targets imagenet-1k"
        )
    if options.ablation and not is_labelled(options.data):
        raise ConfigError(
            f"--ablation compares accuracies, and {options.data} has no labels; leave it out"
        )
    targets = parse_targets(given, wordnet, senses=options.senses)
    mapping = HashtagMapping(options.mapping, options.decay, options.threshold, options.best)
    configs = (
        list_zero_shot_configs(mapping)
        if options.ablation
        else [ZeroShotConfig(options.platt, mapping, options.aggregation)]
    )
    candidate, reading = open_measured(options)
    results = run_ablation(
        candidate,
        options.data,
        targets,
        wordnet,
        configs,
        unlabelled=options.unlabelled,
        **reading,
    )
    first = results[0]
    if options.output:
        write_zero_shot(results, Path(options.output))
    if first.labelled:
        print(
            json.dumps([each.to_dict() for each in results], indent=2)
            if options.json
            else format_zero_shot(results)
        )
    else:
        print(format_predictions_jsonl(first) if options.json else format_predictions(first))
    return report_skipped(first.skipped)


def add_commands(add: Add) -> None:
    """Declare the subcommand of this module, under `swag-models recipe`."""
    command = add(
        "zeroshot",
        zeroshot,
        "swag-models recipe zeroshot vit_nano_hashtags --data held_out/ --wordnet scenes/wordnet",
    )
    command.add_argument(
        "model",
        help="name, folder or hf-hub:org/repo; one whose classes are hashtags with WordNet ids",
    )
    command.add_argument(
        "--data",
        required=True,
        help="labelled: shards, dataset, a sub-folder per target; or pictures, to predict only",
    )
    command.add_argument(
        "--targets",
        help="what to tell apart: imagenet-1k, a file, or words,with,commas (default: the classes of the data)",
    )
    command.add_argument(
        "--senses",
        choices=("first", "all"),
        default="first",
        help="of targets that are words (default: first, the usual one)",
    )
    kinds = ("same", "hyponyms", "hypernyms", "related", "path", "wup")
    command.add_argument(
        "--mapping",
        choices=kinds,
        default="related",
        help="from hashtags to targets (default: related)",
    )
    command.add_argument(
        "--decay",
        type=float,
        default=0.5,
        help="of weights with each step up or down (default: 0.5)",
    )
    command.add_argument(
        "--threshold",
        type=float,
        help="weights that count (default: 1/3 with path, 0.8 with wup, else all)",
    )
    command.add_argument(
        "--best", type=int, metavar="COUNT", help="hashtags that count for a target (default: all)"
    )
    command.add_argument(
        "--aggregation", choices=("sum", "max"), default="sum", help="over hashtags (default: sum)"
    )
    command.add_argument(
        "--no-platt",
        dest="platt",
        action="store_false",
        help="take hashtags as frequent as the model does",
    )
    command.add_argument(
        "--unlabelled",
        metavar="FOLDER",
        help="pictures to fit Platt scaling on (default: those of --data)",
    )
    command.add_argument(
        "--wordnet",
        metavar="FOLDER",
        help="WordNet 3.0's database files (default: where they usually are)",
    )
    command.add_argument(
        "--ablation",
        action="store_true",
        help="every mapping and aggregation, with and without Platt scaling",
    )
    command.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="for zeroshot.json, zeroshot.md and predictions.jsonl",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    add_measuring_options(command)
