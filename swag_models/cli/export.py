"""Subcommand that writes models for other runtimes."""

from __future__ import annotations

import argparse

from swag_models.cli.common import OK, Add, say


def export(options: argparse.Namespace) -> int:
    """Write a model for onnxruntime (.onnx) or torch.export (.pt2), checked against the model."""
    from swag_models.export import export_model

    given = {} if options.weights is None else {"weights": options.weights}
    report = export_model(
        options.name,
        options.path,
        image_size=options.image_size,
        dtype=options.dtype,
        opset=options.opset,
        images=options.calibrate,
        **given,
    )
    print(report.path)
    say(
        f"{report.dtype}, {report.size / 2**20:.1f} MiB; differs from eager float32 by at most {report.max_deviation:.2g} of the "
        f"output's standard deviation, {report.mean_deviation:.2g} in the mean"
    )
    if report.agreement is not None:
        say(f"{report.agreement:.2%} of {report.num_images} images keep their answer")
    return OK


def add_commands(add: Add) -> None:
    """Declare the subcommand of this module."""
    command = add("export", export, "swag-models export vit_b16_in1k vit_b16.onnx --image-size 224")
    command.add_argument("name", help="model")
    command.add_argument("path", help="file to write: .onnx or .pt2")
    command.add_argument(
        "--image-size", type=_parse_size, metavar="N|HxW", help="pixels (default: the model's)"
    )
    command.add_argument(
        "--dtype",
        default="float32",
        help="float32 (default), float16, bfloat16 (.pt2), int8 (.onnx)",
    )
    command.add_argument("--weights", metavar="FILE", help="a checkpoint instead of the catalog's")
    command.add_argument("--opset", type=int, default=18, help="of ONNX (default: 18)")
    command.add_argument(
        "--calibrate",
        metavar="FOLDER",
        help="pictures that must keep their answers; int8 needs them",
    )


def _parse_size(text: str) -> int | tuple[int, int]:
    height, cross, width = text.partition("x")
    try:
        return (int(height), int(width)) if cross else int(height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give pixels as N or HxW") from None
