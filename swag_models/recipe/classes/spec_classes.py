"""The classes of a model of this library: their WordNet ids, and all their spellings."""

from swag_models.api import load_classes
from swag_models.errors import ConfigError
from swag_models.hub.hf_format import VOCABULARY_FILE
from swag_models.hub.published_files import find_beside
from swag_models.recipe.classes.class_matching import NamedClasses, find_installed_wordnet
from swag_models.recipe.data.shards import read_vocabulary
from swag_models.recipe.hashtags import load_imagenet
from swag_models.spec import ModelSpec

IMAGENET = "imagenet-1k"


def find_synsets(spec: ModelSpec) -> tuple[str, ...] | None:
    """Return the WordNet id of each class of a model of this library, if known."""
    return tuple(load_imagenet()) if spec.classes == IMAGENET else spec.synsets


def name_spec_classes(spec: ModelSpec) -> NamedClasses:
    """Return the classes of a model of this library with all their spellings; they need names."""

    def read_spellings() -> list[list[str]] | None:
        if spec.synsets is None or (path := find_beside(spec, VOCABULARY_FILE)) is None:
            return None
        rows = read_vocabulary(path, spellings=True)
        if [row["synset"] for row in rows] != list(spec.synsets):
            raise ConfigError(f"{path} does not belong to the model beside it; publish it again")
        return [row["hashtags"] for row in rows]

    synsets = [(synset,) for synset in find_synsets(spec) or ()] or None
    names = load_classes(spec)
    return NamedClasses("the model", names, synsets, read_spellings, find_installed_wordnet)
