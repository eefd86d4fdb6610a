"""The `swag-models` command: one function per subcommand. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from swag_models import __version__
from swag_models.api import FILTERS, SPECS, get_spec, list_models
from swag_models.errors import ConfigError, ImageError, SwagModelsError, UnknownModelError
from swag_models.spec import ModelSpec

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
OK, FAILED, USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit code is 0, 1 (something failed), 2 (wrong usage) or 130 (interrupted)."""
    options = _make_parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except (UnknownModelError, ConfigError) as error:
        return _fail(error, USAGE)
    except SwagModelsError as error:
        return _fail(error, FAILED)
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def list_(options: argparse.Namespace) -> int:
    """Models of the catalog, one a line."""
    filters = {name: getattr(options, name) for name in FILTERS if getattr(options, name) is not None}
    names = _match_all(options.pattern or ["*"])
    specs = [SPECS[name] for name in list_models("*", **filters) if name in names]
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
    from swag_models.fetch import find_weights

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
        "classes": "none (features)" if spec.num_classes is None else f"{spec.num_classes} ({_classes(spec)})",
        "accuracy": accuracy,
        "license": f"{spec.license}, {spec.license_url}",
        "on this machine": str(where or "no"),
    }
    for name, value in rows.items():
        print(f"{name:<16} {value}")
    for source in spec.sources:
        published = (
            f"SHA-256 {source.sha256}" + ("..." if len(source.sha256) < 64 else "") if source.sha256 else "no published hash"
        )
        print(f"{'source':<16} {source.url} ({source.layout} layout, {published})")
    return OK


def fetch(options: argparse.Namespace) -> int:
    """Download and verify weights; print each file's path."""
    from swag_models.fetch import fetch_weights

    for name in _match_all(options.name):
        print(f"{name}\t{fetch_weights(get_spec(name), progress=not options.quiet)}", flush=True)
    return OK


def verify(options: argparse.Namespace) -> int:
    """Read local weight files again and compare their hashes."""
    from swag_models.fetch import verify_weights

    failed = False
    for name in _match_all(options.name or ["*"]):
        checks = verify_weights(get_spec(name))
        if options.name and not checks:
            _say(f"{name}: no weights on this machine; get them with: swag-models fetch {name}")
            failed = True
        for check in checks:
            print(f"{'ok' if check.ok else 'FAILED'}\t{name}\t{check.sha256}\t{check.path}", flush=True)
            if not check.ok:
                _say(f"{check.path} is not what was verified before; delete it and run: swag-models fetch {name}")
                failed = True
    return FAILED if failed else OK


def convert(options: argparse.Namespace) -> int:
    """Rewrite a checkpoint in another layout or file format."""
    from swag_models.checkpoint import convert_checkpoint

    convert_checkpoint(options.source, options.target, options.to)
    print(options.target)
    return OK


def classify(options: argparse.Namespace) -> int:
    """Most probable classes of pictures."""
    paths = list(_find_images(options.image))
    from swag_models.inference import Classifier
    from swag_models.preprocess import read_image

    size = {} if options.image_size is None else {"image_size": options.image_size}
    classifier = Classifier(options.model, device=options.device, **size)
    failed = 0
    for path in paths:
        try:
            (predictions,) = classifier([read_image(path)], top_k=options.top_k)
        except ImageError as error:
            _say(f"skipped: {error}")
            failed += 1
            continue
        if options.json:
            print(json.dumps({"image": str(path), "predictions": [asdict(each) for each in predictions]}), flush=True)
        else:
            print(path)
            for each in predictions:
                print(f"  {each.probability:7.2%}  {each.label}", flush=True)
    if failed:
        _say(f"{failed} of {len(paths)} images could not be read")
    return FAILED if failed else OK


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swag-models", description="Vision backbones pre-trained on hashtags.")
    parser.add_argument("--version", action="version", version=f"swag-models {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], example: str) -> argparse.ArgumentParser:
        summary = (run.__doc__ or "").strip()
        command = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
        command.set_defaults(run=run)
        return command

    command = add("list", list_, "swag-models list 'vit*' --variant in1k")
    command.add_argument("pattern", nargs="*", help="names or shell patterns (default: all)")
    for name in FILTERS:
        kind: Any = int if name in ("image_size", "num_classes") else str
        allowed = sorted({getattr(spec, name) for spec in SPECS.values()} - {None})
        flag = f"--{name.replace('_', '-')}"
        command.add_argument(flag, type=kind, choices=allowed, metavar=name.upper(), help=", ".join(map(str, allowed)))
    command.add_argument("--json", action="store_true", help="print the full specs as JSON")

    command = add("info", info, "swag-models info vit_b16_in1k")
    command.add_argument("name", help="model")
    command.add_argument("--json", action="store_true", help="print the full spec as JSON")

    command = add("fetch", fetch, "swag-models fetch vit_b16 'regnety_16gf*'")
    command.add_argument("name", nargs="+", help="models or shell patterns")
    command.add_argument("--quiet", action="store_true", help="no progress bar")

    command = add("verify", verify, "swag-models verify")
    command.add_argument("name", nargs="*", help="models or shell patterns (default: all that are on this machine)")

    command = add("convert", convert, "swag-models convert vit_b16.torch vit_b16.safetensors --to timm")
    command.add_argument("source", help="checkpoint in any of the layouts")
    command.add_argument("target", help="file to write: .safetensors, or .pth .pt .torch .bin")
    command.add_argument("--to", required=True, choices=("swag", "torchvision", "timm"), help="layout")

    command = add("classify", classify, "swag-models classify photo.jpg --model vit_b16_in1k --top-k 3")
    command.add_argument("image", nargs="+", help="files, folders or shell patterns")
    command.add_argument("--model", required=True, help="model with classes")
    command.add_argument("--top-k", type=int, default=5, help="classes per image (default: 5)")
    command.add_argument("--image-size", type=int, help="pixels (default: the model's)")
    command.add_argument("--device", default="cpu", help="for example cuda (default: cpu)")
    command.add_argument("--json", action="store_true", help="print one JSON object per image and line")
    return parser


def _match(pattern: str) -> list[str]:
    """Catalog names for a name or shell pattern; UnknownModelError if there is none."""
    if any(sign in pattern for sign in "*?["):
        if names := list_models(pattern):
            return names
        raise UnknownModelError(f"no model matches {pattern!r}; known: {', '.join(SPECS)}")
    return [get_spec(pattern).name]


def _match_all(patterns: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for pattern in patterns for name in _match(pattern)))


def _find_images(patterns: Sequence[str]) -> Iterator[Path]:
    """Files as given, images below folders, matches of shell patterns; each group in sorted order."""
    import glob

    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(each for each in path.rglob("*") if each.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists() or not glob.has_magic(pattern):
            found = [path]  # also if it is missing: reading it will say so
        else:
            found = [Path(each) for each in sorted(glob.glob(pattern, recursive=True))]
        if not found:
            raise ConfigError(f"no image in {pattern}; give files, folders or patterns with {' '.join(sorted(IMAGE_SUFFIXES))}")
        yield from found


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}M"


def _pixels(spec: ModelSpec) -> str:
    return "x".join(map(str, spec.preprocess.size))


def _classes(spec: ModelSpec) -> str:
    return spec.classes if isinstance(spec.classes, str) else ", ".join(spec.classes or ())


def _say(message: object) -> None:
    print(f"swag-models: {message}", file=sys.stderr)


def _fail(error: object, code: int) -> int:
    _say(f"error: {error}")
    return code


if __name__ == "__main__":
    sys.exit(main())
