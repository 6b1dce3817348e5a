"""Two published evaluations of the same pairs, pair by pair."""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from conlst.contract.artifacts import verify
from conlst.contract.errors import RegistryError
from conlst.platform import objects
from conlst.platform.gate import Paired


def compare_evaluations(champion: str, candidate: str) -> Paired:
    """Count the pairs that only one of two models has right.

    Args:
        champion, candidate: ``s3://`` addresses of artifacts of kind ``evaluation``.

    Raises:
        ArtifactError, BackendError: if one cannot be fetched whole.
        RegistryError: if they are not of the same pairs.
    """
    with tempfile.TemporaryDirectory() as folder:
        (old, old_pairs), (new, new_pairs) = (
            _right(objects.fetch_folder(uri, Path(folder) / name)) for name, uri in (("champion", champion), ("new", candidate))
        )
    if old_pairs != new_pairs or old.shape != new.shape:
        raise RegistryError(f"{candidate} and {champion} measure other pairs; evaluate both models on the same ones")
    return Paired(only_champion=int((old & ~new).sum()), only_candidate=int((new & ~old).sum()))


def _right(folder: Path) -> tuple[NDArray[np.bool_], str]:
    manifest = verify(folder, "evaluation")
    predictions = load_file(folder / "predictions.safetensors")
    return predictions["logits"].argmax(axis=1) == predictions["labels"], str(manifest.meta["fingerprint"])
