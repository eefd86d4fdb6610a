"""Run models on images: `Classifier` gives classes, `Embedder` gives features."""

from swag_models.inference.predict import Classifier, Embedder, Embeddings, Prediction, Skipped

__all__ = ["Classifier", "Embedder", "Embeddings", "Prediction", "Skipped"]
