"""The stages between artifact folders: read and verify, run, publish. This is what components and the command line call.

Every function leaves either a complete folder or none, and may be called again after a crash. A training that had published its
folder from the same inputs is not repeated; another goes on from its last checkpoint, kept beside the output: a retry that sees
the same folder goes on, one in a new pod begins its stage again.
"""

from conlst.data.ingestion import ingest, ingest_pool
from conlst.stages.folders.adapt import calibrate_model, self_learn_model, self_train_model
from conlst.stages.folders.estimate import estimate_model
from conlst.stages.folders.measure import evaluate_model, export_model, predict_pairs
from conlst.stages.folders.pairs import read_history, source_pairs, translate_training_pairs
from conlst.stages.folders.source import STARTER, TRAIN, provide_source_model, resolve_source_model, train_source_model

__all__ = [
    "STARTER",
    "TRAIN",
    "calibrate_model",
    "estimate_model",
    "evaluate_model",
    "export_model",
    "ingest",
    "ingest_pool",
    "predict_pairs",
    "provide_source_model",
    "read_history",
    "resolve_source_model",
    "self_learn_model",
    "self_train_model",
    "source_pairs",
    "train_source_model",
    "translate_training_pairs",
]
