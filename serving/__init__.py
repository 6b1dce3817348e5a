"""The NLI endpoint: promoted ONNX models behind HTTP, without torch."""

import os

# BentoML has its processes count in files, for services of several. Ours is one, and reads the name when it is first imported.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
