"""ONNX inference with onnxruntime and tokenizers alone: what serving imports, so that its image needs no torch."""
