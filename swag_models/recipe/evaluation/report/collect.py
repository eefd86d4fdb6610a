"""Measure several models on benchmarks and with probes, and write a report of the results.

The folder of a report contains
  index.html            the page, without external files
  report.md             the same results, with plots in curves.png and calibration.png
  measured/<hash>.json  an evaluation, or the probes, of one model. The hash
                        covers everything that affects the numbers: the content of the model, the
                        names, sizes and times of the data files, and versions. A rerun reads the
                        result from this file.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from swag_models.atomic import disk_errors, write_text
from swag_models.errors import ConfigError
from swag_models.paths import expand_path
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.eval_loader import open_eval_loader
from swag_models.recipe.data.shards import Shards, hash_shards, name_shards
from swag_models.recipe.evaluation.accuracy.benchmarks import open_benchmark
from swag_models.recipe.evaluation.evaluation_files import evaluate_any, restore_evaluation
from swag_models.recipe.evaluation.models import EvaluatedModel, open_evaluated_model
from swag_models.recipe.evaluation.multilabel.results import AnyEvaluation, MultilabelEvaluation
from swag_models.recipe.evaluation.probes.features import hash_file_states
from swag_models.recipe.evaluation.probes.probe import Method, open_train_and_test, probe
from swag_models.recipe.evaluation.report.content import ReportContent
from swag_models.recipe.evaluation.report.plots import write_plots
from swag_models.recipe.evaluation.report.render import LoadImage, render_html, render_markdown
from swag_models.recipe.evaluation.results import Evaluation, ImageResult, Probe
from swag_models.recipe.training.distributed import DistContext, init_distributed
from swag_models.reruns import identify_packages, run_unless_done
from swag_models.resumable import WorkFolder, read_result, run_once
from swag_models.runtime import find_versions

PAGE_FILE = "index.html"
MARKDOWN_FILE = "report.md"
PLOTS_FILE = "curves.png"
CALIBRATION_FILE = "calibration.png"
MEASURED_FOLDER = "measured"
# sgd would need a training run for each model
REPORT_METHODS: tuple[Method, ...] = ("knn", "logistic")


def write_report(
    folder: str | Path,
    evaluations: Sequence[Evaluation],
    probes: Sequence[Probe] = (),
    *,
    date: str,
    load_image: LoadImage = lambda evaluation, record: None,
    origins: Mapping[str, str] | None = None,
    facts: Sequence[Mapping[str, Any]] = (),
    multilabel: Sequence[MultilabelEvaluation] = (),
) -> Path:
    """Write the page, report.md and its plots.

    Args:
        folder: output folder; created if missing.
        evaluations: results of models on benchmarks.
        probes: results of probes.
        date: date of the report, as text.
        load_image: returns the image of a prediction, or None if it cannot be shown.
        origins: description of each model, by name.
        facts: descriptions of the probes' training and test data, as `EvalLoader.facts`.
        multilabel: results of models on images with any number of labels.

    Returns:
        The path of the page.

    Raises:
        OutputError: a file cannot be written.
    """
    folder = expand_path(folder, "folder")
    content = ReportContent(
        evaluations,
        probes,
        date,
        find_versions("swag_models", "torch", "python"),
        origins or {},
        facts,
        multilabel,
    )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if content.curves:
            write_plots(content.curves, folder / PLOTS_FILE)
        if content.benchmarks:
            diagrams = [plot for plots in content.reliability.values() for plot in plots]
            write_plots(diagrams, folder / CALIBRATION_FILE)
        markdown = render_markdown(content, PLOTS_FILE, CALIBRATION_FILE)
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

    Results of an earlier run in the folder are reused. Under torchrun all ranks share the work, and
    rank 0 writes the report; only it needs the folder.

    Args:
        models: names of models, as for `open_evaluated_model`.
        benchmarks: (name, data) of each benchmark.
        folder: output folder of the report.
        date: date of the report, as text.
        train: labelled images to train probes on; None for no probes.
        test: labelled images to test probes on.
        shots: numbers of training images per class, as in `Probe.shots`.
        device: device of the models.
        dtype: dtype of the models' weights.
        batch_size: images per forward pass of a rank.
        workers: number of processes per rank that read images.
        progress: whether to show progress bars.

    Returns:
        The path of the page.

    Raises:
        ConfigError: an argument is invalid, or another process uses the folder.
        OutputError: a file cannot be written.
    """
    _check_request(models, benchmarks, train, test)
    folder = expand_path(folder, "folder")
    reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    probe_data = open_train_and_test(train, test) if train and test else ()
    results = _Results()
    work = WorkFolder(folder / MEASURED_FOLDER, output=folder)
    with init_distributed() as dist, ExitStack() as stack:

        def lock() -> None:
            stack.enter_context(work)

        dist.run_on_main(lock)
        for source in dict.fromkeys(models):  # a model that is listed twice is measured once
            model = open_evaluated_model(source, device=device, dtype=dtype)
            store = _ResultStore(work.path, model, dist)
            # models in different folders may have the same name
            name = source if model.name in results.origins else model.name
            results.origins[name] = store.describe_model()
            # open all data before measuring any, so that a wrong path fails early
            opened = [
                (*benchmark, open_benchmark(*benchmark, model).data)
                for benchmark in dict.fromkeys(benchmarks)
            ]
            for benchmark, path, data in opened:
                values = store.get_or_measure(
                    results.add_data(benchmark, data),
                    partial(evaluate_any, model, path, benchmark, dist=dist, **reading),
                )
                results.add(values, name)
            if probe_data:
                results.facts = [_read_facts(data, model) for data in probe_data]
                hashes = [
                    (facts["sha256"], hash_file_states(data))
                    for facts, data in zip(results.facts, probe_data)
                ]
                options = {"methods": REPORT_METHODS, "shots": shots, "dist": dist, **reading}
                values = store.get_or_measure(
                    (REPORT_METHODS, shots, hashes),
                    partial(probe, model, *probe_data, **options),
                )
                results.probes += [replace(Probe.from_dict(row), model=name) for row in values]
        write = partial(
            write_report,
            folder,
            results.evaluations,
            results.probes,
            date=date,
            load_image=results.load_image,
            origins=results.origins,
            facts=results.facts,
            multilabel=results.multilabel,
        )
        names = (PAGE_FILE, MARKDOWN_FILE, PLOTS_FILE, CALIBRATION_FILE)
        files = [folder / name for name in names]
        # The date is that of the page, and not of a rerun that changes nothing.
        dist.run_on_main(
            lambda: run_unless_done(folder, results.identify, files, lambda: str(write()))
        )
        return files[0]


@dataclass
class _Results:
    """The contents of a report: results by model, and the data sets of its images.

    The keys of `datasets` are (benchmark, title, SHA-256), as in an evaluation; `states` are the
    states of the files of images.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    multilabel: list[MultilabelEvaluation] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    facts: list[dict[str, Any]] = field(default_factory=list)
    datasets: dict[tuple[str, str, str], ImageDataset] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)

    def add_data(self, benchmark: str, data: Shards | ImageDataset) -> tuple[str, str, str, str]:
        """Add the images of a benchmark; return what identifies an evaluation of them."""
        title, sha256 = _identify_data(data)
        state = hash_file_states(data)
        self.states.append(state)
        if isinstance(data, ImageDataset):
            self.datasets[benchmark, title, sha256] = data
        return benchmark, title, sha256, state

    def add(self, values: dict[str, Any], name: str) -> None:
        """Add a stored evaluation of any kind; the name in it need not be unique."""
        if isinstance(evaluation := restore_evaluation(values), MultilabelEvaluation):
            self.multilabel.append(replace(evaluation, model=name))
        else:
            self.evaluations.append(replace(evaluation, model=name))

    def identify(self) -> Any:
        """JSON values of all that the page shows."""
        parts: tuple[AnyEvaluation, ...] = (*self.evaluations, *self.multilabel)
        evaluations = [part.to_dict() for part in parts]
        probes = [probe.to_dict() for probe in self.probes]
        return [
            "report",
            evaluations,
            probes,
            self.origins,
            self.facts,
            self.states,
            identify_packages(),
        ]

    def load_image(self, evaluation: Evaluation, record: ImageResult) -> Image.Image | None:
        """The image of a prediction; None for shards, which have no index by name."""
        facts = evaluation.facts
        dataset = self.datasets.get((evaluation.benchmark, facts["name"], facts["sha256"]))
        return dataset.read(_index_names(dataset)[record.name]) if dataset else None


class _ResultStore:
    """The stored results of one model, as JSON files in a folder that rank 0 has locked."""

    def __init__(self, folder: Path, model: EvaluatedModel, dist: DistContext) -> None:
        self.folder, self.model, self.dist = folder, model, dist
        self.content_hash = model.hash_content()
        self.model_key = (
            model.name,
            model.classes,
            model.multi_label,
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
        self, data_key: Sequence[Any], measure: Callable[[], AnyEvaluation | Sequence[Probe]]
    ) -> Any:
        """The stored result for the model and these data; measured and stored if missing.

        Args:
            data_key: JSON values that identify the data and all else that affects the result.
            measure: called on all ranks if no result is stored.

        Returns:
            JSON values, from which `from_dict` restores the result.

        Raises:
            OutputError: the result cannot be stored.
        """
        key = (*self.model_key, *data_key)
        # named by the whole key, so as not to overwrite results of other data and models
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        record = self.folder / f"{digest}.json"

        def find() -> Any:
            with suppress(LookupError):
                return read_result(record, key, [])  # no files: the record contains the result

        if (stored := self.dist.run_on_main(find)) is not None:
            return stored
        result = measure()

        def store() -> Any:
            # `measure` is called outside, because its OSErrors concern the data, not this folder
            with disk_errors(self.folder, resumable=True):
                return run_once(
                    record, key, [], lambda: result, default=lambda part: part.to_dict()
                )

        return self.dist.run_on_main(store)


def _check_request(
    models: Sequence[str],
    benchmarks: Sequence[tuple[str, str]],
    train: str | None,
    test: str | None,
) -> None:
    if not models or not (benchmarks or train or test):
        raise ConfigError("nothing to report; pass a model, and benchmarks=, or train= and test=")
    if (train is None) != (test is None):
        option, missing = ("train=", "test=") if train else ("test=", "train=")
        raise ConfigError(f"{option} without {missing}: pass both or neither")


def _identify_data(data: Shards | ImageDataset) -> tuple[str, str]:
    """Title and SHA-256, as in `EvalLoader.facts`."""
    if isinstance(data, ImageDataset):
        return data.title, data.sha256
    return name_shards(data), hash_shards(data)


def _read_facts(data: Shards | ImageDataset, model: EvaluatedModel) -> dict[str, Any]:
    return open_eval_loader(data, model.fit, batch_size=1, rank=0, world_size=1, workers=0).facts


@cache  # used for every image of the report
def _index_names(dataset: ImageDataset) -> dict[str, int]:
    return {dataset.name(index): index for index in range(len(dataset))}
