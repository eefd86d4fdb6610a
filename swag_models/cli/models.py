"""Subcommands about the catalog and its weight files."""

from __future__ import annotations

import argparse
import json
from typing import Any

from swag_models.api import FILTERS, SPECS, get_spec, list_models
from swag_models.cli.common import FAILED, OK, Add, match_all, say
from swag_models.spec import ModelSpec


def list_(options: argparse.Namespace) -> int:
    """Models of the catalog, one a line."""
    filters = {
        name: getattr(options, name) for name in FILTERS if getattr(options, name) is not None
    }
    matching = match_all(options.pattern or ["*"])
    specs = [SPECS[name] for name in list_models("*", **filters) if SPECS[name] in matching]
    if options.json:
        print(json.dumps([spec.to_dict() for spec in specs], indent=2))
        return OK
    rows = [("name", "params", "size", "GMACs", "classes", "top-1", "license")]
    rows += [
        (
            spec.name,
            _millions(spec.num_params),
            _pixels(spec),
            f"{spec.gmacs:.2f}",
            str(spec.num_classes or "-"),
            f"{spec.metrics.top1:.2f}" if spec.metrics else "-",
            spec.license,
        )
        for spec in specs
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1])]
        print("  ".join([row[0].ljust(widths[0]), *cells, row[-1]]))
    return OK


def info(options: argparse.Namespace) -> int:
    """All that is known of one model."""
    spec = get_spec(options.name)
    if options.json:
        print(spec.to_json())
        return OK
    from swag_models.hub.fetch import find_weights

    metrics = spec.metrics
    accuracy = "-"
    if metrics:
        top5 = "" if metrics.top5 is None else f", top-5 {metrics.top5}%"
        accuracy = f"top-1 {metrics.top1}%{top5} on {metrics.dataset}"
    where = find_weights(spec)
    rows = {
        "name": spec.name,
        "architecture": f"{spec.arch}: {spec.config}",
        "weights": spec.description,
        "parameters": f"{spec.num_params:,} ({spec.size_mib:,.1f} MiB)",
        "image size": f"{_pixels(spec)}, {spec.preprocess.interpolation}",
        "normalisation": f"mean {spec.preprocess.mean}, std {spec.preprocess.std}",
        "compute": f"{spec.gmacs} GMACs per image",
        "classes": "none (features)"
        if spec.num_classes is None
        else f"{spec.num_classes} ({_classes(spec)})",
        "accuracy": accuracy,
        "license": f"{spec.license}, {spec.license_url}".removesuffix(", "),
        "on this machine": str(where or "no"),
    }
    for name, value in rows.items():
        print(f"{name:<16} {value}")
    for source in spec.sources:
        published = (
            f"SHA-256 {source.sha256}" + ("..." if len(source.sha256) < 64 else "")
            if source.sha256
            else "no published hash"
        )
        print(f"{'source':<16} {source.url} ({source.layout} layout, {published})")
    return OK


def fetch(options: argparse.Namespace) -> int:
    """Download and verify weights; print each file's path."""
    from swag_models.hub.fetch import fetch_weights

    for spec in match_all(options.name):
        print(f"{spec.name}\t{fetch_weights(spec, progress=not options.quiet)}", flush=True)
    return OK


def verify(options: argparse.Namespace) -> int:
    """Read local weight files again and compare their hashes."""
    from swag_models.hub.fetch import verify_weights

    failed = False
    for spec in match_all(options.name or ["*"]):
        name, checks = spec.name, verify_weights(spec)
        if options.name and not checks:
            say(f"{name}: no weights on this machine; get them with: swag-models fetch {name}")
            failed = True
        for check in checks:
            print(
                f"{'ok' if check.ok else 'FAILED'}\t{name}\t{check.sha256}\t{check.path}",
                flush=True,
            )
            if not check.ok:
                say(f"{check.path} is not what was verified before; delete it and get {name} anew")
                failed = True
    return FAILED if failed else OK


def convert(options: argparse.Namespace) -> int:
    """Rewrite a checkpoint in another layout or file format."""
    from swag_models.checkpoint import convert_checkpoint

    convert_checkpoint(options.source, options.target, options.to)
    print(options.target)
    return OK


def add_commands(add: Add) -> None:
    """Declare the subcommands of this module."""
    command = add("list", list_, "swag-models list 'vit*' --variant in1k")
    command.add_argument("pattern", nargs="*", help="names or shell patterns (default: all)")
    for name in FILTERS:
        kind: Any = int if name in ("image_size", "num_classes") else str
        allowed = sorted({getattr(spec, name) for spec in SPECS.values()} - {None})
        flag = f"--{name.replace('_', '-')}"
        command.add_argument(
            flag,
            type=kind,
            choices=allowed,
            metavar=name.upper(),
            help=", ".join(map(str, allowed)),
        )
    command.add_argument("--json", action="store_true", help="print the full specs as JSON")

    command = add("info", info, "swag-models info vit_b16_in1k")
    command.add_argument("name", help="model, folder, or hf-hub:org/repo[@revision]")
    command.add_argument("--json", action="store_true", help="print the full spec as JSON")

    command = add("fetch", fetch, "swag-models fetch vit_b16 'regnety_16gf*'")
    command.add_argument("name", nargs="+", help="models or shell patterns")
    command.add_argument("--quiet", action="store_true", help="no progress bar")

    command = add("verify", verify, "swag-models verify")
    command.add_argument(
        "name", nargs="*", help="models or shell patterns (default: all that are on this machine)"
    )

    command = add(
        "convert", convert, "swag-models convert vit_b16.torch vit_b16.safetensors --to timm"
    )
    command.add_argument("source", help="checkpoint in any of the layouts")
    command.add_argument("target", help="file to write: .safetensors, or .pth .pt .torch .bin")
    command.add_argument(
        "--to", required=True, choices=("swag", "torchvision", "timm"), help="layout"
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}M"


def _pixels(spec: ModelSpec) -> str:
    return "x".join(map(str, spec.preprocess.size))


def _classes(spec: ModelSpec) -> str:
    return (
        spec.classes
        if isinstance(spec.classes, str)
        else ", ".join(spec.classes or ("without names",))
    )
