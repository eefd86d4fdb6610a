"""Subcommands that write models: save, sign, push, export."""

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swag_models.api import SPECS, get_spec
from swag_models.cli.common import OK, AddCommand, add_merge_option
from swag_models.cli.output import print_line, print_message, print_text
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun
from swag_models.paths import expand_path
from swag_models.spec import ModelSpec

KEY_KINDS = "PEM, P-256, P-384 or P-521"

if TYPE_CHECKING:
    from swag_models.models import RegNet, ResNet, ViT


def save(options: argparse.Namespace) -> int:
    """Write a model as a folder: weights, config.json and a model card."""
    # before torch is imported, since the Hub may be unreachable
    folder, spec = expand_path(options.folder, "folder"), get_spec(options.model)
    from swag_models import publish
    from swag_models.reruns import (
        identify_files,
        identify_model,
        identify_packages,
        run_unless_done,
    )

    def make_key() -> Any:
        if (model := identify_model(spec)) is None:
            return None
        keys = identify_files([options.sign] if options.sign else [])
        changes = [options.image_size, options.dtype, options.merge_tokens]
        return ["save", model, *changes, keys, identify_packages()]

    def write() -> None:
        model, facts = _load_model(options, spec)
        publish.save(model, folder, sign=options.sign, **facts)

    run_unless_done(folder, make_key, [folder], write)
    print_line(folder)
    return OK


def sign(options: argparse.Namespace) -> int:
    """Sign all files of a folder, in the format of OpenSSF Model Signing."""
    from swag_models import publish

    print_line(publish.sign_folder(options.folder, options.key))
    return OK


def push(options: argparse.Namespace) -> int:
    """Upload a model, or a folder that `save` wrote, to the Hugging Face Hub."""
    from swag_models import publish

    # a catalog name takes precedence over a folder of the same name
    is_folder = options.model not in SPECS and os.path.isdir(os.path.expanduser(options.model))
    changes = (options.image_size, options.dtype, options.merge_tokens)
    if is_folder and any(change is not None for change in changes):
        raise ConfigError(
            "--image-size, --dtype and --merge-tokens are not allowed with a folder, which is "
            "uploaded unchanged; use save to change it first"
        )
    model, facts = (
        (options.model, {}) if is_folder else _load_model(options, get_spec(options.model))
    )
    upload = publish.push(
        model,
        options.repository,
        revision=options.revision,
        private=options.private,
        message=options.message,
        dry_run=options.dry_run,
        sign=options.sign,
        **facts,
    )
    if not options.dry_run:
        print_line(upload.url)
        print_message(f"load it with: swag_models.load_model({upload.address!r})")
        return OK
    print_message(
        f"dry run, nothing is uploaded; these files and this card would go to {upload.address}"
    )
    for file, size in upload.files:
        print_line(file, size)
    print_text(f"\n{upload.card}".removesuffix("\n"))
    return OK


def export(options: argparse.Namespace) -> int:
    """Export a model to .onnx, torch.export (.pt2) or compiled code (.aoti.pt2), and verify it."""
    path, spec = expand_path(options.path), get_spec(options.name)  # see `save`
    from swag_models.export import export_model
    from swag_models.export.external_data import list_parts
    from swag_models.reruns import run_unless_done

    settings = {
        "image_size": options.image_size,
        "dynamic_size": options.dynamic_size,
        "dtype": options.dtype,
        "opset": options.opset,
        "external_data": options.external_data,
        "images": options.calibrate,
    }
    for option in ("weights", "merge_tokens"):  # `export_model` passes them to `load_model`
        if getattr(options, option) is not None:
            settings[option] = getattr(options, option)
    report = run_unless_done(
        path,
        lambda: _identify_export(options, spec, settings),
        list_parts(path),
        lambda: {**vars(export_model(spec, path, **settings)), "path": None},
    )
    print_line(path)
    print_message(
        f"{report['dtype']}, {report['size'] / 2**20:.1f} MiB; differs from eager float32 by at "
        f"most {report['max_deviation']:.2g} standard deviations of the output, "
        f"{report['mean_deviation']:.2g} on average"
    )
    if report["agreement"] is not None:
        print_message(
            f"agrees with the original on {report['agreement']:.2%} of "
            f"{count_noun(report['num_images'], 'image')}"
        )
    return OK


def _identify_export(options: argparse.Namespace, spec: ModelSpec, settings: dict[str, Any]) -> Any:
    """All that an exported file depends on; None if the weights are not on this machine."""
    from swag_models.export.metadata import COMPILED_SUFFIX, find_suffix
    from swag_models.inference.image_sources import find_images
    from swag_models.inference.native_code import list_instructions
    from swag_models.reruns import (
        identify_files,
        identify_model,
        identify_packages,
        identify_weights,
    )

    if options.weights is None:
        model = identify_model(spec)
    else:
        model = [spec.to_json(), identify_weights(options.weights)]
    if model is None:
        return None
    images = []
    if options.calibrate and os.path.isdir(os.path.expanduser(options.calibrate)):
        images = identify_files(
            ref.source
            for ref in find_images(options.calibrate, Counter())
            if isinstance(ref.source, Path)
        )
    packages: Any = identify_packages("onnx", "onnxruntime", "onnxscript")
    if find_suffix(expand_path(options.path)) == COMPILED_SUFFIX:
        packages = [packages, list_instructions()]
    return ["export", model, settings, images, packages]


def add_commands(add: AddCommand) -> None:
    """Declare the subcommands of this module and their options."""
    command = add("save", save, "swag-models save vit_b16_in1k my_model --dtype bfloat16")
    command.add_argument("model", help="catalog name, folder, or hf-hub:org/repo[@revision]")
    command.add_argument("folder", help="folder to write")
    _add_sign_option(command)
    _add_changes(command)
    command = add("sign", sign, "swag-models sign my_model --key private.pem")
    command.add_argument("folder", help="folder of a model")
    command.add_argument("--key", required=True, metavar="FILE", help=f"private key: {KEY_KINDS}")
    _add_push_options(add("push", push, "swag-models push my_model org/repo --dry-run"))
    _add_export_options(
        add("export", export, "swag-models export vit_b16_in1k vit_b16.onnx --image-size 224")
    )


def _add_push_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model",
        help="folder written by save, which is uploaded unchanged, or name of another model",
    )
    command.add_argument("repository", help="org/repo; created if it does not exist")
    command.add_argument(
        "--dry-run", action="store_true", help="print what would be uploaded, and upload nothing"
    )
    command.add_argument(
        "--private",
        action="store_true",
        help="create the repository as private; an existing one must be private",
    )
    command.add_argument(
        "--revision", help="branch to upload to; created if it does not exist (default: main)"
    )
    command.add_argument("--message", help="commit message")
    _add_sign_option(command)
    _add_changes(command)


def _add_export_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", help="name of the model")
    command.add_argument(
        "path",
        help="file to write: .onnx, .pt2 or .aoti.pt2, which contains code for this kind of CPU",
    )
    command.add_argument(
        "--image-size",
        type=_parse_size,
        metavar="N|HxW",
        help="image size in pixels (default: the model's)",
    )
    command.add_argument(
        "--dynamic-size",
        action="store_true",
        help="accept images of any height and width, for a ViT multiples of the patch size",
    )
    command.add_argument(
        "--dtype",
        default="float32",
        help="float32 (default), float16, bfloat16, int8 (.onnx only); also fp32, fp16, bf16",
    )
    command.add_argument("--weights", metavar="FILE", help="checkpoint to load the weights from")
    add_merge_option(command)
    command.add_argument(
        "--opset", type=int, help="ONNX opset, 18 to 23 (default: 18; for bfloat16: 22)"
    )
    command.add_argument(
        "--external-data",
        action=argparse.BooleanOptionalAction,
        help="store the weights of an .onnx beside it, in PATH.data (default: above 1.5 GB)",
    )
    command.add_argument(
        "--calibrate",
        metavar="FOLDER",
        help="folder of images to calibrate int8 and to compare predictions on; required for int8",
    )


def _add_sign_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--sign", metavar="FILE", help=f"private key to sign with: {KEY_KINDS}")


def _add_changes(command: argparse.ArgumentParser) -> None:
    """Declare the options that change the model before it is written."""
    command.add_argument(
        "--image-size", type=int, help="image size in pixels (default: the model's)"
    )
    command.add_argument(
        "--dtype",
        help="dtype of the weights, such as bfloat16 to halve the size (default: float32)",
    )
    add_merge_option(command)


def _load_model(
    options: argparse.Namespace, spec: ModelSpec
) -> "tuple[ViT | RegNet | ResNet, dict[str, Any]]":
    """The model, and the description and accuracy that still apply to it.

    They refer to the original size, dtype and token merging, so they are dropped if one changes.
    """
    from swag_models.api import load_model

    model = load_model(
        spec,
        image_size=options.image_size,
        dtype=options.dtype,
        merge_tokens=options.merge_tokens,
    )
    same = (
        options.image_size in (None, spec.image_size)
        and options.dtype in (None, "float32")
        and options.merge_tokens in (None, spec.merge_tokens or 0)
    )
    return model, {"description": spec.description, "metrics": spec.metrics} if same else {}


def _parse_size(text: str) -> int | tuple[int, int]:
    height, separator, width = text.partition("x")
    try:
        return (int(height), int(width)) if separator else int(height)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"invalid size {text!r}: allowed: pixels as N or HxW"
        ) from None
