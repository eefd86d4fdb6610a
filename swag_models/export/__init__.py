"""Models as files for other runtimes: `.onnx` for onnxruntime, `.pt2` for torch.export.

A file takes images and returns logits or features, both as float32 regardless of the internal
precision. It accepts any batch size at a fixed image size, and stores the preprocessing, the class
names and the licence.
"""

from swag_models.export.export import DTYPES, OPSETS, ExportReport, export_model
from swag_models.export.metadata import Metadata, read_metadata

__all__ = ["DTYPES", "OPSETS", "ExportReport", "Metadata", "export_model", "read_metadata"]
