"""Images in, classes or embeddings out."""

from swag_models.inference.predict import Classifier, Embedder, Embeddings, Prediction, Skipped

__all__ = ["Classifier", "Embedder", "Embeddings", "Prediction", "Skipped"]
