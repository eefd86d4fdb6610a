"""Run models on images: `Classifier` returns classes, `Embedder` features, `ImageSearch` images."""

from swag_models.inference.predict import Classifier, Embedder, Embeddings, Prediction, Skipped
from swag_models.inference.search import ImageSearch

__all__ = ["Classifier", "Embedder", "Embeddings", "ImageSearch", "Prediction", "Skipped"]


def __dir__() -> list[str]:
    return sorted(__all__)
