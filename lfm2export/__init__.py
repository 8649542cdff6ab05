"""lfm2export: Liquid AI LFM2 checkpoints to ONNX artifacts for every runtime that matters."""

import os

__version__ = "0.1.0"

#: Where a fault of this package is reported.
ISSUES = "https://github.com/lfm2export/lfm2export/issues"

# onnxruntime reads it as it is imported, and else reports that it ran to its makers; every process that is started
# inherits it. Whoever sets it, decides.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
