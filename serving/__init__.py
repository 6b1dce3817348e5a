"""The NLI endpoint: promoted ONNX models behind HTTP, without torch."""

import os

# BentoML has the processes of a service count in files. Ours is one process and counts in memory: prometheus_client reads this
# when it is first imported, which is after this package.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
