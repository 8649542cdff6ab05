"""lfm2export: Liquid AI LFM2 checkpoints to ONNX artifacts for every runtime that matters."""

__version__ = "0.1.0"

#: Where a fault of this package is reported.
ISSUES = "https://github.com/lfm2export/lfm2export/issues"
