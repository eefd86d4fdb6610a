"""Run models on images: `Classifier` returns classes, `Embedder` features, `ImageSearch` images.

They are imported when they are used, so that processes that only read images do not import torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swag_models.inference.predict import Classifier, Embedder, Embeddings, Prediction, Skipped
    from swag_models.inference.search import ImageSearch

__all__ = ["Classifier", "Embedder", "Embeddings", "ImageSearch", "Prediction", "Skipped"]


if not TYPE_CHECKING:  # which would accept any name

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from swag_models.inference import predict, search

        value = globals()[name] = getattr(search if name == "ImageSearch" else predict, name)
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
