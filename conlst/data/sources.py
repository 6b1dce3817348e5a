"""Where rows come from: the shipped sample, the Hugging Face hub, or files. A row is a mapping with the record's field names."""

import gzip
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from conlst.contract.errors import DataError
from conlst.data.pairs import MALFORMED, Ingested, ingest

Row = dict[str, Any]

_ACCEPTED = "sample:<language>, hub:<id>[@revision][/config][:split], or a file ending in .tsv[.gz], .jsonl[.gz] or .parquet"
# names in XNLI 1.0's and MultiNLI's own files; promptID is no pair_id because three pairs share one
_RENAMED = {"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label", "pairID": "pair_id"}

_log = logging.getLogger(__name__)


def load_source(sources: Sequence[str], *, language: str, genres: Sequence[str] = (), max_bad_share: float = 0.02) -> Ingested:
    """Read and ingest several sources of one language together.

    A pair id that an earlier source gave to other texts is written ``<source>:<id>``. Rows in the quarantine also tell ``source``
    and ``source_row``.

    Raises:
        DataError: if a source cannot be read, has no genres to filter by, or too many rows are bad (see
            :func:`conlst.data.pairs.ingest`).
    """
    if not sources:
        raise DataError(f"no source is given for {language}; give {_ACCEPTED}")
    return ingest(_together(sources, language, genres), language=language, max_bad_share=max_bad_share, genres=genres)


def read_rows(source: str, language: str) -> Iterator[Row]:
    """Read one source; ``{language}`` in it is filled in.

    Raises:
        DataError: if the source is of no known form, is missing, or cannot be decoded.
    """
    source = source.replace("{language}", language)
    scheme, colon, rest = source.partition(":")
    if source.startswith("s3://"):
        raise DataError(f"{source} must be fetched first: conlst.platform.objects.localize gives a local path")
    if colon and scheme == "sample":
        return _sample(rest)
    if colon and scheme == "hub":
        return _hub(rest, language)
    for suffix, reader in _READERS.items():
        if source.endswith(suffix):
            return _in_language(map(_renamed, reader(Path(source))), source, language)
    raise DataError(f"source {source!r} is of no known form; give {_ACCEPTED}")


def read_tsv(path: Path) -> Iterator[Row]:
    """Rows of a tab-separated file with a header; quotes are ordinary characters. Empty lines are passed over.

    Raises:
        DataError: if the file is missing, not UTF-8 (with the line number) or its header repeats a name.
    """
    header: list[str] | None = None
    for number, line in _lines(path):
        fields = line.split("\t")
        if header is None:
            header = fields
            if len(set(header)) < len(header):
                raise DataError(f"{path} names a column twice in its header: {', '.join(header)}")
        elif len(fields) != len(header):
            yield {MALFORMED: f"line {number} has {len(fields)} fields, the header {len(header)}", "line": line}
        else:
            yield dict(zip(header, fields, strict=True))


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row = {MALFORMED: f"line {number} is not JSON: {error}", "line": line}
        yield row if isinstance(row, dict) else {MALFORMED: f"line {number} is not a JSON object", "line": line}


def _parquet(path: Path) -> Iterator[Row]:
    try:
        table = pq.read_table(path)
        # datasets keeps the names of its class labels in the schema's metadata
        features = datasets.Features.from_arrow_schema(table.schema)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    return _named(table.to_pylist(), features)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".tsv": read_tsv,
    ".tsv.gz": read_tsv,
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl,
    ".parquet": _parquet,
}


def sample_languages() -> list[str]:
    """Languages of the shipped sample."""
    return sorted(path.stem for path in _sample_folder().glob("*.tsv"))


def _sample_folder() -> Path:
    return Path(str(resources.files("conlst.data") / "sample"))


def _sample(language: str) -> Iterator[Row]:
    if language not in sample_languages():
        raise DataError(f"there is no sample for {language!r}; there are {', '.join(sample_languages())}")
    return ({**row, "language": language} for row in read_tsv(_sample_folder() / f"{language}.tsv"))


def _hub(address: str, language: str) -> Iterator[Row]:
    name, revision, config, split = _parse_hub(address)
    if revision is None and not Path(name).is_dir():
        _log.warning("hub:%s names no revision and may change; pin it as hub:<id>@<commit>", address)
    try:
        if config is None:
            config = _choose_config(datasets.get_dataset_config_names(name, revision=revision), language, address)
        found = datasets.load_dataset(name, config, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError, httpx.HTTPError) as error:
        raise DataError(
            f"hub:{address} cannot be loaded ({error}); check id, config and revision, or use a file where there is no network"
        ) from error
    if split is None and len(found) == 1:
        split = next(iter(found))
    if split not in found:
        raise DataError(f"hub:{address} needs one of the splits {', '.join(found)}, as hub:<id>:<split>")
    return map(_renamed, _named(found[split], found[split].features))


def _parse_hub(address: str) -> tuple[str, str | None, str | None, str | None]:
    """Split ``id[@revision][/config][:split]``; an id is ``owner/name``."""
    path, _, split = address.partition(":")
    name, at, tail = path.partition("@")
    if at:
        revision, _, config = tail.partition("/")
    else:
        owner, _, tail = path.partition("/")
        short, _, config = tail.partition("/")
        name, revision = f"{owner}/{short}", ""
    if not all(name.partition("/")) or "/" in config or (at and not revision):
        raise DataError(f"hub:{address} is not of the form hub:<owner>/<name>[@revision][/config][:split]")
    return name, revision or None, config or None, split or None


def _choose_config(configs: list[str], language: str, address: str) -> str:
    for choice in (language, "default"):
        if choice in configs:
            return choice
    if len(configs) == 1:
        return configs[0]
    raise DataError(f"hub:{address} has no config {language!r}; name one of {', '.join(configs)}, as hub:<id>/<config>")


def _named(rows: Any, features: datasets.Features) -> Iterator[Row]:
    """Rows with class numbers replaced by the names that the data set itself gives them; -1 means unlabelled."""
    classes = {name: feature for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    for row in rows:
        named = dict(row)
        for name, feature in classes.items():
            value = row[name]
            named[name] = None if value is None or value < 0 else feature.int2str(value)
        yield named


def _renamed(row: Mapping[str, Any]) -> Row:
    return {_RENAMED.get(name, name): value for name, value in row.items()}


def _in_language(rows: Iterator[Row], source: str, language: str) -> Iterator[Row]:
    """XNLI 1.0 keeps all its languages in one file: there, and only there, rows of other languages are passed over."""
    others = 0
    for row in rows:
        if "sentence1_binary_parse" in row and row.get("language", language) != language:
            others += 1
        else:
            yield row
    if others:
        _log.info("%s: passed over %d rows of other languages than %s", source, others, language)


def _together(sources: Sequence[str], language: str, genres: Sequence[str]) -> Iterator[Row]:
    owners: dict[str, tuple[int, Any]] = {}
    names = [source.replace("{language}", language).rpartition("/")[2] for source in sources]
    for index, source in enumerate(sources):
        name = names[index] if names.count(names[index]) == 1 else f"{names[index]}#{index + 1}"
        has_genre = False
        for number, row in enumerate(read_rows(source, language), start=1):
            has_genre = has_genre or bool(row.get("genre"))
            texts = (row.get("premise"), row.get("hypothesis"))
            pair_id = row.get("pair_id")
            if pair_id not in (None, ""):
                owner, owned = owners.setdefault(str(pair_id), (index, texts))
                if owner != index and owned != texts:
                    row = {**row, "pair_id": f"{name}:{pair_id}"}
            yield {**row, "source": name, "source_row": number}
        if genres and not has_genre:
            raise DataError(
                f"{source} has no genres to filter by ({', '.join(genres)}); empty data.genres or leave the source out"
            )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not empty, without their end; only line feeds divide (a text may hold U+2028 or NEL)."""
    number = 0
    try:
        with _opened(path) as file:
            for number, raw in enumerate(file, start=1):
                text = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
                if number == 1:
                    text = text.removeprefix("\ufeff")
                if text:
                    yield number, text
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8 ({error}); convert the file to UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read after line {number}: {error}") from error


def _opened(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
