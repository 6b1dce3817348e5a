"""The NLI endpoint: promoted ONNX models behind HTTP, without torch."""
