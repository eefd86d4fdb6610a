"""`Classifier` and `Embedder`: models with their preprocessing, applied to images of any source.

Axes: N batch, D features, K classes, H W pixels.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from swag_models.api import get_spec, load_classes
from swag_models.errors import (
    ConfigError,
    check_minimum,
    check_types,
    plain_arguments,
    suggest_names,
)
from swag_models.formatting import count_noun
from swag_models.inference.batch_result import Skipped
from swag_models.inference.pipeline import InferencePipeline
from swag_models.inference.thresholds import Thresholds, read_thresholds
from swag_models.model_metadata import NameOrModel, check_class_names

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from swag_models.signatures import PipelineOptions

__all__ = ["Classifier", "Embedder", "Embeddings", "Prediction", "Skipped"]

logger = logging.getLogger("swag_models")

DEFAULT_TOP_K = 5


@dataclass(frozen=True)
class Prediction:
    """One predicted class of an image.

    Attributes:
        label: name of the class.
        index: index of its logit.
        probability: its softmax over all classes, or for a multi-label model its sigmoid.
    """

    label: str
    index: int
    probability: float


class Embeddings(NamedTuple):
    """Features of images.

    Attributes:
        vectors: (N, D) float32.
        names: names of the N images, in order.
        skipped: images that could not be read; they have no row.
    """

    vectors: Tensor
    names: list[str]
    skipped: list[Skipped]

    def __repr__(self) -> str:
        rows, width = self.vectors.shape
        size = f"{count_noun(rows, 'vector')} of {count_noun(width, 'feature')}"
        return f"Embeddings({size}, {len(self.skipped)} skipped)"


class Classifier(InferencePipeline):
    """A model with its preprocessing and class names, which classifies images.

    Args:
        model: anything that `load_model` accepts, with classes; or a model in memory.
        classes: names of the classes in the order of the logits; by default the model's.
        threshold: return every class whose probability is at least this, a number from 0 to 1; or
            one for each class, in order; or by name, with 0.5 for the classes that are not named.
            An image then has any number of classes, also none. By default the `top_k` most
            probable ones are returned. For a model that is not multi-label, probabilities are the
            softmax, of which at most one exceeds 0.5.
        multi_label: whether probabilities are sigmoids; by default as the model states.
        candidate_labels: names of the only classes to choose from; the softmax is over these. With
            hashtags as classes, this is zero-shot classification.
        options: see `InferencePipeline`.

    Raises:
        ConfigError: the model has no classes or not all candidates, or an option has an invalid
            value.
    """

    keeps_head = True
    purpose = "classify images with"

    @plain_arguments
    def __init__(
        self,
        model: NameOrModel,
        *,
        classes: Sequence[str] | None = None,
        threshold: Thresholds | None = None,
        multi_label: bool | None = None,
        candidate_labels: Sequence[str] | None = None,
        **options: "Unpack[PipelineOptions]",
    ) -> None:
        check_types(bool | None, multi_label=multi_label)
        if not isinstance(model, nn.Module) and options.get("trusted_key") is None:
            model = get_spec(model)
            # errors come before a long download of the weights
            if options.get("weights", ...) is ...:
                names = _name_classes(model, model.num_classes, classes)
                _find_candidates(names, candidate_labels)
                if threshold is not None:
                    read_thresholds(threshold, names)
            elif classes is None:  # a file of weights may have other classes
                load_classes(model)
        super().__init__(model, **options)
        self.classes = _name_classes(self.model, self.model.num_classes, classes)
        if classes is not None:
            self.spec = replace(self.spec, classes=self.classes, synsets=None)
        if multi_label is not None:
            self.spec = replace(self.spec, multi_label=multi_label)
        self.thresholds = None if threshold is None else read_thresholds(threshold, self.classes)
        self.candidates = _find_candidates(self.classes, candidate_labels)  # indices

    def _describe_output(self) -> str:
        return count_noun(len(self.classes), "class")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, 3, H, W)."""
        return self.model(x)

    @plain_arguments
    def __call__(self, images: Any, top_k: int | None = None) -> list[list[Prediction]]:
        """Classify images.

        Args:
            images: anything that `find_images` accepts: a path, folder, shell pattern, tar shard,
                PIL image, array or tensor, or a list of those.
            top_k: largest number of classes per image; by default 5, or all with `threshold`.

        Returns:
            For each image its most probable classes, best first. The list is empty for an image
            that cannot be read; the reason is logged.

        Raises:
            ConfigError: `images` contains something else, or `top_k` is less than 1.
        """
        predictions: list[list[Prediction]] = []
        for _, classes, reason in self.stream(images, top_k):
            if reason:
                logger.warning("skipped: %s", reason)
            predictions.append(classes)
        return predictions

    @plain_arguments
    def stream(
        self, images: Any, top_k: int | None = None
    ) -> Iterator[tuple[str, list[Prediction], str | None]]:
        """Classify images and yield each result as soon as its batch is done.

        Args:
            images: as for `__call__`.
            top_k: as for `__call__`.

        Yields:
            (name, most probable classes, None) for each image in order, or (name, [], reason) if
            it cannot be read.

        Raises:
            ConfigError: as for `__call__`.
        """
        check_types(int | None, top_k=top_k)
        check_minimum(1, top_k=top_k)
        with closing(self.run(images)) as batches:
            for batch in batches:
                # only images that could be read have a row
                rows = iter([] if batch.values is None else self._rank(batch.values, top_k))
                for index, image in enumerate(batch.images):
                    reason = batch.errors.get(index)
                    yield image.name, [] if reason else next(rows), reason

    def _rank(self, logits: Tensor, top_k: int | None) -> list[list[Prediction]]:
        """The most probable classes of each row of logits (N, K).

        Raises:
            ConfigError: the head was replaced by one with another number of outputs.
        """
        if logits.shape[1:] != (len(self.classes),):
            raise ConfigError(
                f"the head of {self.name} gives outputs of shape {tuple(logits.shape[1:])} for "
                f"{count_noun(len(self.classes), 'class')}; make another head with "
                "model.reset_classifier, and name its classes with Classifier(..., classes=[...])"
            )
        chosen = logits if self.candidates is None else logits[:, self.candidates]
        scores = chosen.sigmoid() if self.spec.multi_label else chosen.softmax(dim=-1)
        count = min(top_k or DEFAULT_TOP_K, scores.shape[1])
        probabilities = scores
        if self.candidates is not None:
            probabilities = torch.full_like(logits, -1)
            probabilities[:, self.candidates] = scores
        if self.thresholds is not None:
            # in float64, in which each probability is the number that is returned
            thresholds = torch.tensor(self.thresholds, dtype=torch.float64, device="cpu")
            below = probabilities.double() < thresholds
            probabilities = probabilities.masked_fill(below, -1)
            largest = int((probabilities != -1).sum(dim=1).max())  # of the classes of an image
            count = largest if top_k is None else min(top_k, largest)
        top = probabilities.topk(count)
        return [
            [
                Prediction(self.classes[index], index, value)
                for value, index in zip(values, indices)
                if value != -1
            ]
            for values, indices in zip(top.values.tolist(), top.indices.tolist())
        ]


def _name_classes(
    model: NameOrModel, count: int | None, classes: Sequence[str] | None
) -> tuple[str, ...]:
    """The names that the caller passed, or those of a model with `count` classes."""
    if classes is None or not count:
        return load_classes(model)
    return check_class_names(classes, count)


def _find_candidates(classes: Sequence[str], labels: Sequence[str] | None) -> list[int] | None:
    """The indices of the classes to choose from; None for all."""
    if labels is None:
        return None
    check_types(list | tuple, candidate_labels=labels)
    if not labels:
        raise ConfigError("candidate_labels is empty; name one class or more")
    indices = {name: index for index, name in enumerate(classes)}
    for label in labels:
        check_types(str, candidate_labels=label)
        if label not in indices:
            raise ConfigError(suggest_names("candidate label", label, classes))
    return sorted({indices[label] for label in labels})


class Embedder(InferencePipeline):
    """A model without its head, with its preprocessing, which turns images into features.

    Args:
        model: anything that `load_model` accepts; or a model in memory.
        options: see `InferencePipeline`.

    Raises:
        ConfigError: an option has an invalid value.
    """

    keeps_head = False
    purpose = "embed images with"

    def _describe_output(self) -> str:
        return count_noun(self.model.num_features, "feature")

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, D) of normalised images (N, 3, H, W)."""
        return self.model.forward_head(self.model.forward_features(x), pre_logits=True)

    @plain_arguments
    def __call__(self, images: Any) -> Embeddings:
        """Embed images.

        Args:
            images: anything that `find_images` accepts: a path, folder, shell pattern, tar shard,
                PIL image, array or tensor, or a list of those.

        Returns:
            The features, in order. Images that cannot be read have no row; they are listed in
            `skipped` and logged.

        Raises:
            ConfigError: `images` contains something else.
        """
        # the empty tensor lets torch.cat work without any image
        empty = torch.empty(0, self.model.num_features, dtype=torch.float32, device="cpu")
        vectors, names, skipped = [empty], [], []
        for batch in self.run(images):
            names += batch.names
            skipped += batch.skipped
            vectors += [] if batch.values is None else [batch.values]
        for image in skipped:
            logger.warning("skipped: %s", image.reason)
        return Embeddings(torch.cat(vectors), names, skipped)
