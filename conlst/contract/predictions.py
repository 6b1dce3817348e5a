"""The predictions of a published evaluation, which another evaluation of the same pairs can be laid beside."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from conlst.contract.artifacts import verify
from conlst.contract.errors import ArtifactError

_FILE = "predictions.safetensors"
# what is kept of every pair
KEPT = ("labels", "logits", "records")


def write_predictions(folder: Path, logits: NDArray[np.float32], labels: NDArray[np.int64], records: NDArray[np.int64]) -> None:
    """Write into a folder that is not published yet.

    Args:
        logits: ``[n, classes]``.
        labels: ``[n]``.
        records: ``[n]`` hashes of the pairs: a row's place says nothing of its pair, for a fingerprint ignores their order.
    """
    save_file({"logits": logits, "labels": labels, "records": records}, folder / _FILE)


def read_predictions(folder: Path) -> dict[str, NDArray]:
    """The arrays ``logits``, ``labels`` and ``records``, rows in the order of ``records``.

    Raises:
        ArtifactError: if the folder is no whole evaluation, or an older conlst wrote it, without ``records``.
    """
    verify(folder, "evaluation")
    found = load_file(folder / _FILE)
    if found.keys() != set(KEPT):
        raise ArtifactError(
            f"{folder} does not tell which pair each of its predictions is of, as an older conlst published it; "
            "evaluate the model again"
        )
    order = np.argsort(found["records"], kind="stable")
    return {name: values[order] for name, values in found.items()}
