"""The report of several models: measure what is not measured yet, and write page and Markdown.

The folder of a report contains
  index.html            the page, with everything in it
  report.md             the same results, with plots in curves.png and calibration.png
  measured/<hash>.json  an evaluation, or the probes, of one model. The hash is that of everything
                        that decides the numbers: the content of the model, the names, sizes and
                        times of the data's files, versions. A rerun takes the result from there.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from swag_models.atomic import WorkFolder, disk_errors, read_result, run_once, write_text
from swag_models.errors import ConfigError
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.eval_loader import open_eval_loader
from swag_models.recipe.data.shards import Shards, hash_shards, name_shards
from swag_models.recipe.evaluation.accuracy.benchmarks import open_benchmark
from swag_models.recipe.evaluation.accuracy.evaluate import evaluate
from swag_models.recipe.evaluation.models import EvaluatedModel, open_evaluated_model
from swag_models.recipe.evaluation.probes.features import hash_file_states
from swag_models.recipe.evaluation.probes.probe import Method, open_train_and_test, probe
from swag_models.recipe.evaluation.report.content import ReportContent
from swag_models.recipe.evaluation.report.plots import write_plots
from swag_models.recipe.evaluation.report.render import LoadImage, render_html, render_markdown
from swag_models.recipe.evaluation.results import Evaluation, ImageResult, Probe
from swag_models.recipe.training.distributed import init_distributed
from swag_models.runtime import find_versions

PAGE_FILE = "index.html"
MARKDOWN_FILE = "report.md"
CURVES_FILE = "curves.png"
CALIBRATION_FILE = "calibration.png"
MEASURED_FOLDER = "measured"
METHODS: tuple[Method, ...] = ("knn", "logistic")  # sgd takes a training run for each model


def write_report(
    folder: str | Path,
    evaluations: Sequence[Evaluation],
    probes: Sequence[Probe] = (),
    *,
    date: str,
    load_image: LoadImage = lambda evaluation, record: None,
    origins: Mapping[str, str] | None = None,
    facts: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the page of these results, report.md and its plots.

    Args:
        folder: created if missing.
        evaluations: of models on benchmarks.
        probes: of models.
        date: of the report, as readers see it.
        load_image: returns the image of a prediction, or None if it cannot be shown.
        origins: description of each model, by name.
        facts: descriptions of the probes' training and test data, as `EvalLoader.facts`.

    Returns:
        The path of the page.

    Raises:
        OutputError: a file cannot be written.
    """
    folder = Path(folder)
    content = ReportContent(
        evaluations,
        probes,
        date,
        find_versions("swag_models", "torch", "python"),
        origins or {},
        facts,
    )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if content.curves:
            write_plots(content.curves, folder / CURVES_FILE)
        if content.benchmarks:
            diagrams = [plot for plots in content.reliability.values() for plot in plots]
            write_plots(diagrams, folder / CALIBRATION_FILE)
        markdown = render_markdown(content, CURVES_FILE, CALIBRATION_FILE)
        write_text(folder / MARKDOWN_FILE, markdown)
        write_text(folder / PAGE_FILE, render_html(content, load_image))
    return folder / PAGE_FILE


def collect_report(
    models: Sequence[str],
    benchmarks: Sequence[tuple[str, str]],
    folder: str | Path,
    *,
    date: str,
    train: str | None = None,
    test: str | None = None,
    shots: Sequence[int | float | None] = (1, 5, 10, None),
    device: str = "cpu",
    dtype: str | None = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = True,
) -> Path:
    """Measure each model on each benchmark, and with probes, and write the report.

    Results that an earlier run left in the folder are not measured again.

    Args:
        models: as `open_evaluated_model` takes them.
        benchmarks: (name, data) of each benchmark.
        folder: of the report.
        date: of the report, as readers see it.
        train: labelled images to train probes on; None for no probes.
        test: labelled images to test them on.
        shots: training images of each class, as `Probe.shots`.
        device: of the models.
        dtype: of the models' weights.
        batch_size: of inference.
        workers: processes that read images.
        progress: show progress bars.

    Returns:
        The path of the page.

    Raises:
        ConfigError: an argument is invalid, or another process uses the folder.
        OutputError: a file cannot be written.
    """
    _check_request(models, benchmarks, train, test)
    folder = Path(folder)
    reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    probe_data = open_train_and_test(train, test) if train and test else ()
    results = _Results()
    work = WorkFolder(folder / MEASURED_FOLDER, output=folder)
    with work, init_distributed() as dist:
        for source in dict.fromkeys(models):  # a model that is named twice is measured once
            model = open_evaluated_model(source, device=device, dtype=dtype)
            store = _ResultStore(work.path, model)
            # two folders may contain models of the same name
            name = source if model.name in results.origins else model.name
            results.origins[name] = store.describe_model()
            # open all data before measuring any, so that a wrong path fails early
            opened = [
                (*benchmark, open_benchmark(*benchmark, model).data)
                for benchmark in dict.fromkeys(benchmarks)
            ]
            for benchmark, path, data in opened:
                title, sha256 = _identify_data(data)
                if isinstance(data, ImageDataset):
                    results.datasets[benchmark, title, sha256] = data
                values = store.get_or_measure(
                    (benchmark, title, sha256, hash_file_states(data)),
                    partial(evaluate, model, path, benchmark, dist=dist, **reading),
                )
                # the stored result has the model's own name, which is not unique here
                results.evaluations.append(replace(Evaluation.from_dict(values), model=name))
            if probe_data:
                results.facts = [_read_facts(data, model) for data in probe_data]
                hashes = [
                    (facts["sha256"], hash_file_states(data))
                    for facts, data in zip(results.facts, probe_data)
                ]
                values = store.get_or_measure(
                    (METHODS, shots, hashes),
                    partial(probe, model, *probe_data, methods=METHODS, shots=shots, **reading),
                )
                results.probes += [replace(Probe.from_dict(row), model=name) for row in values]
        return write_report(
            folder,
            results.evaluations,
            results.probes,
            date=date,
            load_image=results.load_image,
            origins=results.origins,
            facts=results.facts,
        )


@dataclass
class _Results:
    """What a report shows: results by model, and the data that its images are from.

    `datasets` has a key of benchmark, title and SHA-256, as an evaluation states them.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    facts: list[dict[str, Any]] = field(default_factory=list)
    datasets: dict[tuple[str, str, str], ImageDataset] = field(default_factory=dict)

    def load_image(self, evaluation: Evaluation, record: ImageResult) -> Image.Image | None:
        """The image of a prediction; None for shards, which have no index by name."""
        facts = evaluation.facts
        dataset = self.datasets.get((evaluation.benchmark, facts["name"], facts["sha256"]))
        return dataset.read(_index_names(dataset)[record.name]) if dataset else None


class _ResultStore:
    """The stored results of one model, as JSON files in a folder that this process has locked."""

    def __init__(self, folder: Path, model: EvaluatedModel) -> None:
        self.folder, self.model = folder, model
        self.content_hash = model.hash_content()
        self.model_key = (
            model.name,
            model.classes,
            self.content_hash,
            model.device.type,
            find_versions("swag_models", "torch", "python"),
        )

    def describe_model(self) -> str:
        """Preprocessing, dtype, device and content of the model."""
        model = self.model
        return (
            f"{model.preprocess}, {model.dtype} on {model.device.type}, SHA-256 {self.content_hash}"
        )

    def get_or_measure(
        self, data_key: Sequence[Any], measure: Callable[[], Evaluation | Sequence[Probe]]
    ) -> Any:
        """The stored result for the model and these data; measured and stored if missing.

        Args:
            data_key: JSON values that identify the data, and whatever else decides the result.
            measure: called if no result is stored.

        Returns:
            JSON values, from which `from_dict` restores the result.

        Raises:
            OutputError: the result cannot be stored.
        """
        key = (*self.model_key, *data_key)
        # named by the whole key, so that results of other data or models stay beside it
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        record = self.folder / f"{digest}.json"
        try:
            return read_result(record, key, [])  # no files: the record contains the result
        except LookupError:
            result = measure()
        # `measure` stays outside: its OSErrors concern the data, not this folder
        with disk_errors(self.folder, resumable=True):
            return run_once(record, key, [], lambda: result, default=lambda part: part.to_dict())


def _check_request(
    models: Sequence[str],
    benchmarks: Sequence[tuple[str, str]],
    train: str | None,
    test: str | None,
) -> None:
    if not models or not (benchmarks or train or test):
        raise ConfigError(
            "nothing to report; give a model, and --benchmarks NAME=FOLDER, or --train FOLDER and "
            "--test FOLDER"
        )
    if (train is None) != (test is None):
        option, missing = ("--train", "--test") if train else ("--test", "--train")
        raise ConfigError(f"{option} without {missing}: give both, or neither")
    # torchrun sets the variable; several processes would measure the same results
    if (count := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise ConfigError(
            f"a report is written by one process, not by {count}; start it without torchrun"
        )


def _identify_data(data: Shards | ImageDataset) -> tuple[str, str]:
    """Title and SHA-256, as `EvalLoader.facts` has them."""
    if isinstance(data, ImageDataset):
        return data.title, data.sha256
    return name_shards(data), hash_shards(data)


def _read_facts(data: Shards | ImageDataset, model: EvaluatedModel) -> dict[str, Any]:
    return open_eval_loader(data, model.fit, batch_size=1, rank=0, world_size=1, workers=0).facts


@cache  # used for every image of the report
def _index_names(dataset: ImageDataset) -> dict[str, int]:
    return {dataset.name(index): index for index in range(len(dataset))}
