"""From sources to an artifact folder of pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from conlst.contract.config import Config
from conlst.contract.errors import DataError
from conlst.data.pairs import SEVERAL, merge_pairs, write_pairs
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


def ingest_pool(
    config: Config,
    sources: Mapping[str, Sequence[str]],
    out: Path,
    *,
    collected: Mapping[str, Mapping[str, list[str]]] | None = None,
) -> str:
    """Read, check and publish the pool of a language, or those of several as one: each is then kept beside it, as ``out-code``.

    Args:
        sources, collected: what :func:`ingest` takes, by the code of the language, in the order of the
            pairs.

    Returns:
        What the stages are told as the language of the pool: its code, or ``SEVERAL``.

    Raises:
        DataError: as :func:`conlst.data.sources.load_source`, naming the first language whose sources cannot be used.
    """
    if len(sources) == 1:
        ((language, files),) = sources.items()
        ingest(config, "pool", files, language, out, collected=(collected or {}).get(language))
        return language
    parts = {language: out.with_name(f"{out.name}-{language}") for language in sources}
    for language, files in sources.items():
        try:
            ingest(config, "pool", files, language, parts[language], collected=(collected or {}).get(language))
        except DataError as error:
            raise DataError(f"the pool of {language}: {error}") from error
    merge_pairs(list(parts.values()), out)
    return SEVERAL


def count_pairs(files: Sequence[Path]) -> int:
    """Rows of Parquet files, by what their footers say."""
    return sum(pq.read_metadata(file).num_rows for file in files)
