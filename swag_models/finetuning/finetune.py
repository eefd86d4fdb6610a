"""Fine-tune a model on a folder of images, and publish the result as a folder.

During the work, a folder `<output>.work` beside the output contains the run of the recipe's
trainer, which resumes after an interruption. At the end the output appears at once, with
  model.safetensors, config.json, README.md, recipe.json   as `publish.save` writes them
  curves.png, log.jsonl    loss, learning rate and accuracy over the steps
  confusion.png            which classes are taken for which, on the held-out images
  held_out.csv             the held-out images, and what the model predicts for each of them
  finetune.json            the result of the command, for a rerun that has nothing to do
"""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from swag_models.api import get_spec, load_model
from swag_models.atomic import disk_errors, temporary_folder, write_json
from swag_models.decoding import parse_json
from swag_models.devices import check_device
from swag_models.errors import ConfigError, check_types
from swag_models.finetuning.confusion import draw_confusions, write_predictions
from swag_models.finetuning.defaults import HeadStart, choose_run
from swag_models.finetuning.folders import FolderData, open_folder
from swag_models.finetuning.job import complete_job, describe_finetuning, restrict_job
from swag_models.formatting import count_noun, printable
from swag_models.hub.hf_format import CONFUSION_FILE, CURVES_FILE, RECIPE_FILE
from swag_models.paths import expand_path
from swag_models.publish.save import choose_name, save
from swag_models.recipe.config import Run
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.evaluation.accuracy.benchmarks import FOLDER, MULTILABEL
from swag_models.recipe.evaluation.evaluation_files import evaluate_any
from swag_models.recipe.evaluation.models import open_evaluated_model
from swag_models.recipe.evaluation.multilabel.results import AnyEvaluation
from swag_models.recipe.evaluation.results import Estimate, Evaluation
from swag_models.recipe.training.distributed import init_distributed
from swag_models.recipe.training.logging import LOG_FILE
from swag_models.recipe.training.model import PublishInfo, describe_training
from swag_models.recipe.training.trainer import train
from swag_models.resumable import WorkFolder, read_result, report_done, write_result
from swag_models.runtime import import_extra
from swag_models.spec import Metrics

RESULT_FILE, PREDICTIONS_FILE = "finetune.json", "held_out.csv"
EXTRA = "swag-models[finetune]"

logger = logging.getLogger("swag_models")


@dataclass(frozen=True)
class FineTuned:
    """What `finetune` made.

    Attributes:
        folder: of the published model.
        classes: names of its classes.
        train_images: number of images that it was trained on.
        held_out_images: number of other images, which the accuracy was measured on.
        metrics: measured on these, in percent with the ends of 95% intervals: "top1" and
            "mean_per_class", or for images with several labels "mAP", "CF1" and "OF1".
        unreadable: held-out images that could not be read and do not count, with the reasons.
    """

    folder: Path
    classes: tuple[str, ...]
    train_images: int
    held_out_images: int
    metrics: Mapping[str, tuple[float, float, float]]
    unreadable: tuple[str, ...]


def finetune(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    val: str | os.PathLike[str] | None = None,
    holdout: float = 0.2,
    linear: bool = False,
    head_init: HeadStart = "random",
    epochs: float | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    merge_tokens: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    settings: Sequence[str] = (),
    name: str | None = None,
    description: str | None = None,
    license: str | None = None,
    progress: bool = True,
) -> FineTuned:
    """Fine-tune a model on a folder of images, or resume an interrupted run.

    Args:
        folder: has a sub-folder of images for each class, or the sub-folders `train` and `val`
            (or `test`) with those; or a list of images and labels, or a folder with such a list.
        output: folder of the published model, which must not exist yet.
        model: the model to start from: a name, a folder or hf-hub:org/repo.
        labels: file with the labels of the images in `folder`, any number for each; see
            `annotations.open_annotations`.
        val: held-out images of the same classes, in any of the forms of `folder`.
        holdout: fraction of each class to hold out if `val` is None; 0 trains on all images and
            measures nothing.
        linear: train only a linear classifier, and keep the rest of the model as it is.
        head_init: how the classifier starts: "random", or "hashtags", each class from what the
            model has learnt about the hashtags of this name; by WordNet, if it is installed.
        epochs: passes over the training images; by default 100 for few images, 3 for many.
        lr: peak learning rate of the head; by default from the width of the model.
        batch_size: images in a step; by default 32, or 64 of many images.
        image_size: in pixels; by default the model's.
        merge_tokens: number of similar tokens that each block of a ViT merges, in training and in
            the result, which makes both faster; by default the model's, 0 in the catalog.
        seed: of the held-out images, new weights, data order and augmentation.
        device: "cpu", "cuda" or "auto", which is a CUDA GPU if there is one.
        settings: further settings of the run, as in ["augment.flip=0"];
            see `config_overrides.override`.
        name: of the model, for its card; by default the name of `output`.
        description: of the model, for its card.
        license: of the weights; by default that of the model it is made from.
        progress: draw a progress bar where there is a terminal or a notebook.

    Returns:
        The folder of the model, and its accuracy on the held-out images.

    Raises:
        ConfigError: an argument is invalid, the folder has no classes of images, or the output
            exists.
        TrainingError: the loss is not finite.
        PreemptedError: SIGTERM or SIGUSR1 arrived; a checkpoint has been written.
    """
    check_types(bool, linear=linear, progress=progress)
    check_types(str | os.PathLike, model=model)
    import_extra("matplotlib", EXTRA, "fine-tuning")
    output = Path(os.path.abspath(expand_path(output, "output")))
    # before the training, not when its model is published
    info = PublishInfo(None, choose_name(name, output), description, license)
    _check_output(output, folder, val)
    spec, target = get_spec(model), _choose_device(device)
    data = open_folder(folder, val, holdout, seed, labels)
    run = choose_run(
        spec,
        os.fspath(model),
        len(data.train),
        target,
        linear=linear,
        multi_label=data.multi_label,
        head_init=head_init,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        image_size=image_size,
        merge_tokens=merge_tokens,
        seed=seed,
        settings=settings,
    )
    job = describe_finetuning(spec, run, data)
    key = [job, asdict(info)]
    work = output.with_name(f"{output.name}.work")
    if (finished := _find_finished(output, key)) is not None:
        shutil.rmtree(work, ignore_errors=True)
        return finished
    with (
        disk_errors(output, resumable=True),
        WorkFolder(work, output=output) as folder_of_work,
    ):
        folder_of_work.claim(job, complete_job)
        run_folder = folder_of_work.path / "run"
        trained = train(
            run,
            data.train,
            run_folder,
            val=data.held_out,
            device=target,
            tensorboard=False,
            progress=progress,
        )
        evaluation = None
        if data.held_out is not None:
            evaluation = _evaluate(trained, data.held_out, target, run, progress)
        _publish(output, trained, run_folder, data, evaluation, info, key)
    shutil.rmtree(work, ignore_errors=True)
    result = _find_result(output, key)
    assert result is not None
    return result


def _check_output(output: Path, *folders: str | os.PathLike[str] | None) -> None:
    """Raise ConfigError if the output is inside of a folder of images, where it would be a class.

    Also if it contains one.
    """
    real = Path(os.path.realpath(output))
    for folder in folders:
        images = None if folder is None else Path(os.path.realpath(expand_path(folder, "folder")))
        if images and (real.is_relative_to(images) or images.is_relative_to(real)):
            raise ConfigError(
                f"output {output} is inside of the images {folder}, or contains them; give a "
                "folder beside them"
            )


def _choose_device(device: str | torch.device) -> torch.device:
    """A CPU, or a GPU with its number."""
    chosen = check_device(device)
    if chosen.type == "cuda":
        return torch.device("cuda", chosen.index or 0)
    if chosen.type != "cpu" and str(device).lower() != "auto":  # the trainer does not run on others
        raise ConfigError(f"invalid device {chosen}: allowed for training: auto, cpu, cuda")
    return torch.device("cpu")


def _evaluate(
    trained: Path, data: ImageDataset, device: torch.device, run: Run, progress: bool
) -> AnyEvaluation:
    """Measure the accuracy of the folder that was written, as its users will load it."""
    with init_distributed(device) as dist:
        return evaluate_any(
            open_evaluated_model(trained, device=device),
            data,
            MULTILABEL if run.objective.is_multi_label else FOLDER,
            dist=dist,
            batch_size=run.engine.micro_batch or run.batch_size,
            workers=run.engine.workers,
            progress=progress,
        )


def _publish(
    output: Path,
    trained: Path,
    run_folder: Path,
    data: FolderData,
    evaluation: AnyEvaluation | None,
    info: PublishInfo,
    key: Any,
) -> None:
    """Write the output, which appears under its name when it is complete."""
    recipe = parse_json((trained / RECIPE_FILE).read_bytes())
    metrics, figures = None, [("Training", CURVES_FILE)]
    measures = {} if evaluation is None else _list_measures(evaluation)
    recipe["metrics"] = {name: estimate.value for name, estimate in measures.items()}
    if isinstance(evaluation, Evaluation):
        images = f"{count_noun(len(evaluation.records), 'held-out image')} of {data.train.title}"
        metrics = Metrics(images, round(evaluation.top1.value, 2))
        figures.append(("Confusion matrix of the held-out images", CONFUSION_FILE))
    with temporary_folder(output) as folder:
        save(
            load_model(trained),
            folder,
            name=info.name,
            description=info.description or _describe_model(recipe),
            metrics=metrics,
            license=info.license,
            training="\n\n".join(
                [
                    describe_training(recipe),
                    *(f"![{title}]({file})" for title, file in figures),
                ]
            ),
        )
        write_json(folder / RECIPE_FILE, recipe)
        for file in (CURVES_FILE, LOG_FILE):
            shutil.copyfile(run_folder / file, folder / file)
        if isinstance(evaluation, Evaluation):
            draw_confusions(evaluation, folder / CONFUSION_FILE)
        if evaluation is not None:
            write_predictions(evaluation, folder / PREDICTIONS_FILE)
        result = {
            "classes": data.train.class_names,
            "train_images": len(data.train),
            "held_out_images": 0 if evaluation is None else len(evaluation.records),
            "metrics": measures,
            "unreadable": [] if evaluation is None else sorted(evaluation.skipped),
        }
        write_result(folder / RESULT_FILE, key, _list_files(folder), result)
        folder.chmod(run_folder.stat().st_mode)  # temporary folders are private
        if output.is_dir():
            output.rmdir()  # empty: see `_find_finished`
        folder.rename(output)


def _list_measures(evaluation: AnyEvaluation) -> dict[str, Estimate]:
    if isinstance(evaluation, Evaluation):
        return {"top1": evaluation.top1, "mean_per_class": evaluation.mean_per_class}
    return {name: evaluation.measures[name] for name in ("mAP", "CF1", "OF1")}


def _find_finished(output: Path, key: Any) -> FineTuned | None:
    """The result of an earlier run with the same arguments, None if the output does not exist.

    Raises:
        ConfigError: the output is something else.
    """
    if not output.exists() or (output.is_dir() and not os.listdir(output)):
        return None
    if result := _find_result(output, key):
        report_done(output)
        return result
    raise ConfigError(
        f"{output} exists, and is not what this command has written, or was changed; delete it, "
        "or choose another output"
    )


def _find_result(output: Path, key: Any) -> FineTuned | None:
    if not output.is_dir():
        return None
    with suppress(LookupError, OSError, ValueError, TypeError, AttributeError):
        job, info = key
        # as the version that wrote the output described it
        job = restrict_job(job, parse_json((output / RECIPE_FILE).read_bytes())["run"])
        values = read_result(output / RESULT_FILE, [job, info], _list_files(output))
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        metrics = {name: tuple(value) for name, value in values["metrics"].items()}
        return FineTuned(output, **{**values, **lists, "metrics": metrics})
    return None


def _list_files(folder: Path) -> list[Path]:
    """The files of an output beside its record, sorted."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.name != RESULT_FILE and not path.name.startswith(".")
    )


def _describe_model(recipe: Mapping[str, Any]) -> str:
    run, data = recipe["run"], recipe["data"]
    how = "a linear classifier on" if run["trainable"] == "head" else "fine-tuned from"
    return f"{run['arch']}, {how} {printable(run['init'])}, on {data['name']}"
