"""Teachers of a distillation: a frozen model, or embeddings that were stored before.

Axes: N samples of a micro batch, D features, C classes, S pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swag_models.api import load_classes, load_model
from swag_models.catalog import MODELS
from swag_models.errors import ConfigError
from swag_models.hub.hf_format import VOCABULARY_FILE
from swag_models.hub.published_files import find_beside
from swag_models.inference.embed_job import hash_weights
from swag_models.models import Backbone
from swag_models.preprocess import Transform
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.embeddings import StoredEmbeddings, select_embedded
from swag_models.recipe.data.shard_labels import read_shard_labels
from swag_models.recipe.data.shards import Shards, name_shards
from swag_models.recipe.distillation import Distillation
from swag_models.recipe.training.classes import Classes
from swag_models.recipe.training.teacher_spec import find_teacher
from swag_models.spec import UNKNOWN, ModelSpec


class Answers(NamedTuple):
    """What a teacher says of images.

    Attributes:
        features: (N, D), float32.
        logits: (N, C); None without a head.
        weights: (N,), 0 for images that the teacher does not know, otherwise 1.
    """

    features: Tensor
    logits: Tensor | None
    weights: Tensor


@dataclass(frozen=True)
class ModelTeacher:
    """A frozen model in evaluation mode, which sees the crops of the student.

    Attributes:
        spec: of the model.
        model: has a head only if its logits are used.
        transform: its preprocessing.
        classes: of its head.
        facts: name and hash of the weights, for run.json.
    """

    spec: ModelSpec
    model: Backbone
    transform: Transform
    classes: Classes
    facts: dict[str, Any]

    @property
    def license(self) -> tuple[str, str]:
        """The licence of the weights, and its URL."""
        return self.spec.license, self.spec.license_url

    @property
    def width(self) -> int:
        """D."""
        return self.model.num_features

    @property
    def image_size(self) -> int:
        """Pixels of a crop that it needs."""
        return self.transform.preprocess.size[0]

    def answer(self, images: Tensor, ids: Sequence[str], autocast: Any) -> Answers:
        """Run the model.

        Args:
            images: (N, 3, S, S), floats from 0 to 1, of its image size.
            ids: not used.
            autocast: context of the forward pass.
        """
        with torch.no_grad(), autocast:
            hidden = self.model.forward_features(self.transform.normalise(images))
            features = self.model.forward_head(hidden, pre_logits=True)
            logits = self.model.forward_head(hidden) if self.model.num_classes else None
        return Answers(features.float(), logits, torch.ones(len(features), device=images.device))


@dataclass(frozen=True)
class StoredTeacher:
    """Embeddings of whole images, whatever crop the student sees.

    Attributes:
        stored: the embeddings.
        rows: id of each image -> row; filled by `select`.
        facts: name of their model, hashes of its weights and of the rows, for run.json.
    """

    stored: StoredEmbeddings
    facts: dict[str, Any]
    rows: dict[str, int] = field(default_factory=dict)
    spec = None
    classes = Classes(0)
    image_size = 1  # its images are not read

    @property
    def license(self) -> tuple[str, str]:
        """The licence of a model of the catalog, and its URL; a file of embeddings has none."""
        specs = [spec for spec in MODELS if spec.name == self.facts["model"]]
        return (specs[0].license, specs[0].license_url) if specs else (UNKNOWN, "")

    @property
    def width(self) -> int:
        """D."""
        return int(self.stored.vectors.shape[1])

    def answer(self, images: Tensor, ids: Sequence[str], autocast: Any) -> Answers:
        """Look up the embeddings of images by their ids; as for `ModelTeacher.answer`."""
        rows = torch.tensor([self.rows.get(name, -1) for name in ids])
        vectors = self.stored.vectors[rows.clamp(min=0)].to(images.device)
        return Answers(vectors, None, (rows >= 0).float().to(images.device))

    def select(self, data: Shards | ImageDataset) -> Shards | ImageDataset:
        """Leave out images without an embedding, which are counted in a warning.

        Samples of shards stay, and their loss is 0.

        Raises:
            ConfigError: no image has an embedding, or shards are not local.
        """
        if isinstance(data, ImageDataset):
            data, rows = select_embedded(data, self.stored)
            self.rows.update(zip(map(data.name, range(len(data))), rows))
            return data
        labels = list(read_shard_labels(data))
        rows = self.stored.find_all([(label.id, label.key) for label in labels], name_shards(data))
        self.rows.update((label.id, row) for label, row in zip(labels, rows))
        return data


Teacher = ModelTeacher | StoredTeacher


def open_teacher(distill: Distillation, device: torch.device) -> Teacher:
    """Load the teacher of a run.

    Args:
        distill: the settings.
        device: of the student.

    Raises:
        ConfigError: as for `find_teacher`, or there is none.
    """
    if distill.teacher is None:
        raise ConfigError(
            "distill.teacher is none; give a model by name, folder or hf-hub:org/repo, or a file "
            "that swag-models embed wrote"
        )
    spec = find_teacher(distill)
    if spec is None:
        stored = StoredEmbeddings(distill.teacher)
        return StoredTeacher(stored, stored.facts)
    has_head = distill.logit_weight > 0
    options: dict[str, Any] = {} if has_head else {"num_classes": None}
    model = load_model(spec, device=device, **options)
    model.eval().requires_grad_(False)
    classes = read_teacher_classes(spec) if has_head else Classes(0)
    facts = {"model": spec.name, "weights_sha256": hash_weights(model)}
    return ModelTeacher(spec, model, Transform(spec.preprocess), classes, facts)


def read_teacher_classes(spec: ModelSpec) -> Classes:
    """Read the classes of a model, with the vocabulary beside it if they are hashtags."""
    assert spec.num_classes
    names = None if spec.classes is None else tuple(load_classes(spec))
    vocabulary = find_beside(spec, VOCABULARY_FILE) if spec.synsets else None
    return Classes(spec.num_classes, names, spec.synsets, vocabulary)
