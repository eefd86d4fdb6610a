"""Models as files for other runtimes: `.onnx` for onnxruntime, `.pt2` for torch.export.

A file takes images and returns logits or features, both float32 whatever the precision inside; the
batch size is free, the image size fixed. Preprocessing, class names and licence are stored in it.
"""

from swag_models.export.export import DTYPES, OPSETS, ExportReport, export_model
from swag_models.export.metadata import Metadata, read_metadata

__all__ = ["DTYPES", "OPSETS", "ExportReport", "Metadata", "export_model", "read_metadata"]
