"""From sources to an artifact folder of pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from conlst.contract.config import Config
from conlst.data.pairs import write_pairs
from conlst.data.sources import load_source


def ingest(
    config: Config,
    role: str,
    sources: Sequence[str],
    language: str,
    out: Path,
    limit: int | None = None,
    *,
    collected: Mapping[str, list[str]] | None = None,
) -> dict[str, Any]:
    """Read, check and publish pairs.

    Args:
        role: ``source`` is filtered by ``data.genres``; the others are not.
        sources: local files, ``sample:`` or ``hub:`` addresses.
        limit: keep a random draw of this many pairs, by ``config.seed``.
        collected: files of collected text that are among the sources, for :func:`conlst.data.pairs.collected_in` to find.

    Returns:
        The report of the checks, which are made before anything is drawn.
    """
    genres = config.data.genres if role == "source" else ()
    ingested = load_source(sources, language=language, genres=genres, max_bad_share=config.data.max_bad_share)
    if limit is not None and limit < len(ingested.pairs):
        # here and not above: who ingests all there is needs no torch, which takes seconds to import
        import torch

        chosen = torch.randperm(len(ingested.pairs), generator=torch.Generator().manual_seed(config.seed))[:limit]
        report = {**ingested.report, "drawn": limit}
        ingested = replace(ingested, pairs=ingested.pairs.select(sorted(chosen.tolist())), report=report)
    if collected:
        ingested = replace(ingested, report={**ingested.report, "collected": dict(collected)})
    write_pairs(ingested, out, config=config.data.model_dump(mode="json"))
    return ingested.report


def count_pairs(files: Sequence[Path]) -> int:
    """Rows of Parquet files, by what their footers say."""
    return sum(pq.read_metadata(file).num_rows for file in files)
