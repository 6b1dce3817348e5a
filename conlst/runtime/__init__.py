"""ONNX inference with onnxruntime and tokenizers alone: what serving imports, so that its image needs no torch."""

import os

# onnxruntime reports to its maker by default, and reads this when it is first imported: import it from here only
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
