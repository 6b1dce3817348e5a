"""Two published evaluations of the same pairs, pair by pair."""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conlst.contract.artifacts import read_manifest
from conlst.contract.errors import ArtifactError, RegistryError
from conlst.contract.predictions import read_predictions
from conlst.platform import objects
from conlst.platform.gate import Paired


def compare_evaluations(champion: str, candidate: str) -> Paired:
    """Count the pairs that only one of two models has right.

    Args:
        champion, candidate: ``s3://`` addresses of artifacts of kind ``evaluation``.

    Raises:
        ArtifactError, BackendError: if one cannot be fetched whole.
        RegistryError: if they are not of the same pairs, or an older conlst made one.
    """
    old, old_pairs = _right(champion)
    new, new_pairs = _right(candidate)
    if old_pairs != new_pairs:
        raise RegistryError(f"{candidate} and {champion} measure other pairs; evaluate both models on the same ones")
    return Paired(only_champion=int((old & ~new).sum()), only_candidate=int((new & ~old).sum()))


def _right(uri: str) -> tuple[NDArray[np.bool_], str]:
    """Whether the model is right on each pair, in an order that is the pairs' own, and the fingerprint of the pairs."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = objects.fetch_folder(uri, Path(scratch) / "evaluation")
        try:
            predictions = read_predictions(folder)
        except ArtifactError as error:
            raise RegistryError(
                f"{uri} cannot be compared: {error}, push that and name its address in the tag evaluation of the version"
            ) from error
        pairs = str(read_manifest(folder).meta["fingerprint"])
    return predictions["logits"].argmax(axis=1) == predictions["labels"], pairs
