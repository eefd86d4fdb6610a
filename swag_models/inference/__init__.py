"""Run models on images: `Classifier` returns classes, `Embedder` returns features."""

from swag_models.inference.predict import Classifier, Embedder, Embeddings, Prediction, Skipped

__all__ = ["Classifier", "Embedder", "Embeddings", "Prediction", "Skipped"]


def __dir__() -> list[str]:
    return sorted(__all__)
