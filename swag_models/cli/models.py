"""Subcommands about the catalog and its files: list, info, fetch, bundle, verify, convert."""

import argparse
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from swag_models.api import FILTERS, SPECS, get_spec, list_models
from swag_models.cli.common import (
    FAILED,
    OK,
    AddCommand,
    add_backend_option,
    add_json_option,
    add_quiet_option,
    match_specs,
)
from swag_models.cli.output import print_data, print_line, print_message
from swag_models.errors import ConfigError, SignatureError
from swag_models.formatting import describe
from swag_models.merged_accuracy import MERGED_ACCURACY
from swag_models.paths import expand_path
from swag_models.registry import list_values
from swag_models.spec import ModelSpec

# Best first: the most accurate, the smallest, the fastest
SORT_KEYS: dict[str, Callable[[ModelSpec], Any]] = {
    "name": lambda spec: spec.name,
    "top1": lambda spec: -(find_top1(spec) or -1),
    "params": lambda spec: spec.num_params,
    "gmacs": lambda spec: spec.gmacs,
    "size": lambda spec: math.prod(spec.preprocess.size),
}
UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def parse_count(text: str) -> float:
    """Return a number of parameters, such as 100M, 1.5B or 86000000.

    Args:
        text: a positive number, optionally with K, M or B behind it.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)([kmb]?)", text.strip().lower(), re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(
            f"invalid number {describe(text)}: allowed: a positive number with K, M or B, as 100M"
        )
    return float(match[1]) * UNITS[match[2]]


def list_(options: argparse.Namespace) -> int:
    """List the models in the catalog, one per line; top-1 is that on ImageNet-1k."""
    filters = {
        name: getattr(options, name) for name in FILTERS if getattr(options, name) is not None
    }
    matching = match_specs(options.pattern or ["*"])
    specs = [SPECS[name] for name in list_models("*", **filters) if SPECS[name] in matching]
    if options.max_params is not None:
        specs = [spec for spec in specs if spec.num_params <= options.max_params]
    if options.sort:
        specs.sort(key=SORT_KEYS[options.sort])
    if options.json:
        print_data(json.dumps([spec.to_dict() for spec in specs], indent=2))
        return OK
    if not specs:
        print_message("no model has all of these values")
        return OK
    rows = [("name", "pre-training", "params", "size", "GMACs", "classes", "top-1", "license")]
    rows += [
        (
            spec.name,
            spec.pretraining or "-",
            f"{spec.num_params / 1e6:.1f}M",
            _format_size(spec),
            f"{spec.gmacs:.2f}",
            str(spec.num_classes or "-"),
            _format_top1(spec),
            spec.license,
        )
        for spec in specs
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for name, pretraining, *numbers, license in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[2:])]
        texts = [name.ljust(widths[0]), pretraining.ljust(widths[1])]
        print_line("  ".join([*texts, *cells, license]))
    return OK


def info(options: argparse.Namespace) -> int:
    """Show everything that the catalog knows about a model."""
    spec = get_spec(options.name)
    if options.json:
        print_data(spec.to_json())
        return OK
    from swag_models.hub.fetch import find_weights

    rows = spec.list_facts()
    sources = [row for row in rows if row[0] == "source"]
    rows = [row for row in rows if row[0] != "source"]
    if spec is SPECS.get(spec.name) and spec.name in MERGED_ACCURACY:
        rows.append(("token merging", MERGED_ACCURACY[spec.name].describe()))
    rows += [("on this machine", str(find_weights(spec) or "no")), *sources]
    for name, value in rows:
        print_line(f"{name:<16} {value}")
    return OK


def fetch(options: argparse.Namespace) -> int:
    """Download and verify weights, and print the path of each file."""
    from swag_models.hub.fetch import fetch_weights

    for spec in match_specs(options.name):
        print_line(spec.name, fetch_weights(spec, progress=not options.quiet))
    return OK


def bundle(options: argparse.Namespace) -> int:
    """Write weights with their licences and hashes into a folder for machines without a network."""
    from swag_models.hub.bundle import write_bundle

    specs = match_specs(options.name)
    for spec in specs:
        if SPECS.get(spec.name) is not spec:
            raise ConfigError(
                f"invalid NAME {spec.name}: allowed: models of the catalog; copy the folder of "
                "any other model instead, and load it by its path"
            )
    folder = expand_path(options.output, "output")
    for name, path in write_bundle(specs, folder, progress=not options.quiet).items():
        print_line(name, path)
    return OK


def verify(options: argparse.Namespace) -> int:
    """Check local weight files against their hashes, or with --key all files of signed models."""
    from swag_models.hub.fetch import verify_weights

    if options.key is not None:
        return _verify_signed(options.name, options.key)
    failed = False
    for spec in match_specs(options.name or ["*"]):
        name, checks = spec.name, verify_weights(spec)
        # without names, models that were never downloaded are skipped
        if options.name and not checks:
            print_message(
                f"{name}: no weights on this machine; download them with: swag-models fetch {name}"
            )
            failed = True
        for check in checks:
            status = "ok" if check.ok else "FAILED"
            print_line(status, name, check.sha256, check.path)
            if not check.ok:
                print_message(
                    f"{check.path} has changed since it was verified; delete it and download "
                    f"{name} again"
                )
                failed = True
    return FAILED if failed else OK


def _verify_signed(names: Sequence[str], key: str) -> int:
    """Verify the signatures of folders and Hub repositories, and print each file."""
    from swag_models.hub.signed_model import verify_model

    if not names:
        raise ConfigError("--key needs a folder, or hf-hub:org/repo[@revision]")
    failed = False
    for name in names:
        try:
            files = verify_model(name, key).files
        except SignatureError as error:
            print_message(f"error: {error}")
            failed = True
            continue
        for file in files.values():
            print_line("ok", name, file.sha256, file.path)
    return FAILED if failed else OK


def convert(options: argparse.Namespace) -> int:
    """Convert a checkpoint to another layout or file format."""
    from swag_models.checkpoint import convert_checkpoint
    from swag_models.reruns import identify_packages, identify_weights, run_unless_done

    source, target = expand_path(options.source, "source"), expand_path(options.target, "target")
    settings = {"layout": options.to, "backend": options.backend, "key": options.key}
    run_unless_done(
        target,
        lambda: ["convert", identify_weights(source), settings, identify_packages()],
        [target],
        lambda: convert_checkpoint(source, target, **settings),
    )
    print_line(options.target)
    return OK


def add_commands(add: AddCommand) -> None:
    """Declare the subcommands of this module and their options."""
    _add_list(add)

    command = add("info", info, "swag-models info vit_b16_in1k")
    command.add_argument("name", help="model, folder, or hf-hub:org/repo[@revision]")
    add_json_option(command, "print the full spec as JSON")

    command = add("fetch", fetch, "swag-models fetch vit_b16 'regnety_16gf*'")
    command.add_argument("name", nargs="+", help="models or shell patterns")
    add_quiet_option(command)

    command = add("bundle", bundle, "swag-models bundle vit_b16_in1k -o weights/")
    command.add_argument("name", nargs="+", help="models or shell patterns")
    command.add_argument(
        "-o",
        "--output",
        required=True,
        help="folder to write, for SWAG_MODELS_CACHE or as the files of SWAG_MODELS_MIRROR",
    )
    add_quiet_option(command)

    command = add("verify", verify, "swag-models verify")
    command.add_argument(
        "name",
        nargs="*",
        help="models or shell patterns (default: all models on this machine); with --key, signed "
        "folders or hf-hub:org/repo[@revision]",
    )
    command.add_argument(
        "--key", metavar="FILE", help="public key that all files have to be signed with, PEM"
    )

    command = add(
        "convert", convert, "swag-models convert vit_b16.torch vit_b16.safetensors --to timm"
    )
    command.add_argument("source", help="checkpoint in any supported layout")
    command.add_argument("target", help="file to write: .safetensors, .pth, .pt, .torch or .bin")
    command.add_argument(
        "--to", required=True, choices=("swag", "torchvision", "timm"), help="layout to write"
    )
    command.add_argument(
        "--key", help="which state dict to take if the checkpoint has several, for example teacher"
    )
    command.set_defaults(python_names={"weights_key": "--key"})
    add_backend_option(command)


def _add_list(add: AddCommand) -> None:
    command = add("list", list_, "swag-models list 'vit*' --variant in1k")
    command.add_argument("pattern", nargs="*", help="names or shell patterns (default: all)")
    for name in FILTERS:
        kind: Any = int if name in ("image_size", "num_classes") else str
        found = {value for spec in SPECS.values() for value in list_values(spec, name)}
        values = sorted(found - {None}, key=str)
        command.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            metavar=name.upper(),
            help=", ".join(map(str, values)),
        )
    command.add_argument(
        "--sort", choices=tuple(SORT_KEYS), help="order, the most accurate or smallest first"
    )
    command.add_argument(
        "--max-params", type=parse_count, metavar="N", help="largest number of parameters, as 100M"
    )
    add_json_option(command, "print the full specs as JSON")


def find_top1(spec: ModelSpec) -> float | None:
    """Return the accuracy on ImageNet-1k: that on other data is not comparable, and is in `info`.

    Args:
        spec: the model.
    """
    metrics = spec.metrics
    return metrics.top1 if metrics and metrics.dataset == "imagenet-1k" else None


def _format_top1(spec: ModelSpec) -> str:
    top1 = find_top1(spec)
    return "-" if top1 is None else f"{top1:.2f}"


def _format_size(spec: ModelSpec) -> str:
    return "x".join(map(str, spec.preprocess.size))
