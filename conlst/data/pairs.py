"""The pair record and its checks: every row becomes a pair or stands in the quarantine with a reason."""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from numpy.typing import NDArray

from conlst.contract.artifacts import canonical_json, publish, read_manifest, verify
from conlst.contract.errors import DataError, LabelError
from conlst.contract.labels import ID2LABEL, parse_label

KIND = "pairs"
FEATURES = Features(
    {
        "premise": Value("string"),
        "hypothesis": Value("string"),
        "label": Value("int64"),
        "language": Value("string"),
        "genre": Value("string"),
        "pair_id": Value("string"),
    }
)
# a reader puts this key into a row that it could not split into fields; its value says why
MALFORMED = "malformed"
MAX_CHARACTERS = 20_000
# ISO 639-2 for pairs of more than one language
SEVERAL = "mul"

_DUPLICATE = "exact duplicate"
_UNLABELLED = ("", "-")
_INVISIBLE = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})
_SURROGATE = re.compile("[\ud800-\udfff]")
# tab, line feed and carriage return are ordinary white space
_CONTROL = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_DIRECTION_MARK = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Ingested:
    """What :func:`ingest` made of some rows.

    Attributes:
        pairs: the good pairs, with :data:`FEATURES`.
        quarantine: ``{"number", "reason", "detail", "row"}`` of every row set aside; numbers count from 1.
        report: counts. ``set_aside`` (by reason) includes exact duplicates, ``bad`` does not; ``notes`` counts what was let
            through: ``composed_unicode``, ``control_characters``, ``direction_marks``, ``made_pair_ids``, ``label_conflicts``.
    """

    pairs: Dataset
    quarantine: list[dict[str, Any]]
    report: dict[str, Any]


class _BadRow(Exception):
    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass
class _Seen:
    """Numbers of earlier rows: by pair id, and by texts and label."""

    ids: dict[str, int] = field(default_factory=dict)
    pairs: dict[tuple[str, str], dict[int | None, int]] = field(default_factory=dict)


def ingest(rows: Iterable[Mapping[str, Any]], *, language: str, max_bad_share: float, genres: Sequence[str] = ()) -> Ingested:
    """Check and normalise rows with the record's fields; ``language``, ``genre``, ``label`` and ``pair_id`` may be absent.

    Texts become NFC without outer white space. An exact duplicate (texts and label) is set aside but not called bad; the same
    texts under two labels are both kept and counted, because XNLI's own test files hold such pairs. Control characters other
    than NUL are taken out and counted for the same reason. A row without ``pair_id`` is named after its content.

    Args:
        max_bad_share: the largest share of bad rows, of all rows, that is let through.
        genres: keep only these, in any case; empty keeps all.

    Raises:
        DataError: over ``max_bad_share``, naming the commonest reason; or if no pair is left, or no row has a genre to filter by.
    """
    wanted = {genre.casefold() for genre in genres}
    seen, notes, kept_genres = _Seen(), Counter[str](), Counter[str]()
    other_genres = Counter[str]()
    quarantine: list[dict[str, Any]] = []
    columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
    total = 0
    for total, row in enumerate(rows, start=1):
        try:
            record, mended = _record(row, language)
            if wanted and record["genre"].casefold() not in wanted:
                other_genres[record["genre"]] += 1
                continue
            notes.update(mended)
            notes.update(_remember(record, total, seen))
        except _BadRow as bad:
            quarantine.append({"number": total, "reason": bad.reason, "detail": bad.detail, "row": dict(row)})
            continue
        kept_genres[record["genre"]] += 1
        for name, values in columns.items():
            values.append(record[name])
    set_aside = Counter(entry["reason"] for entry in quarantine)
    bad_rows = [entry for entry in quarantine if entry["reason"] != _DUPLICATE]
    report = {
        "language": language,
        "rows": total,
        "pairs": len(columns["premise"]),
        "bad": len(bad_rows),
        "set_aside": dict(sorted(set_aside.items())),
        "other_genre": other_genres.total(),
        "labels": _label_counts(columns["label"]),
        "genres": dict(sorted(kept_genres.items())),
        "notes": dict(sorted(notes.items())),
    }
    _refuse_bad_share(bad_rows, total, max_bad_share)
    if not columns["premise"]:
        raise DataError(_nothing_left(total, genres, other_genres))
    return Ingested(Dataset(pa.table(columns, schema=FEATURES.arrow_schema)), quarantine, report)


def merge_pairs(parts: Sequence[Path], out: Path) -> None:
    """Publish the pairs of several folders as one, in their order; ids of different languages are told apart by the language.

    The reports of the parts' checks and what they set aside are kept, and what was collected in them is collected in the whole.
    """
    pairs = [read_pairs(part) for part in parts]
    languages = {language for one in pairs for language in one["language"]}
    table = pa.concat_tables([_table(one) for one in pairs])
    if len(languages) > 1:
        ids = [
            f"{language}:{pair_id}" for one in pairs for language, pair_id in zip(one["language"], one["pair_id"], strict=True)
        ]
        column = table.schema.get_field_index("pair_id")
        table = table.set_column(column, FEATURES.arrow_schema.field("pair_id"), pa.array(ids))
    reports = [json.loads((part / "report.json").read_text(encoding="utf-8")) for part in parts]
    report = {"language": languages.pop() if len(languages) == 1 else SEVERAL, "pairs": len(table), "parts": reports}
    collected: dict[str, list[str]] = {}
    for part in reports:
        for source, files in part.get("collected", {}).items():
            collected.setdefault(source, []).extend(files)
    if collected:
        report["collected"] = collected
    quarantine = [
        {"part": number, **json.loads(line)}
        for number, part in enumerate(parts)
        for line in (part / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    parents = {f"part{number}": read_manifest(part).digest for number, part in enumerate(parts)}
    write_pairs(Ingested(Dataset(table), quarantine, report), out, parents=parents)


def require_labels(pairs: Dataset, where: str) -> None:
    """Refuse pairs that lack a label.

    Raises:
        DataError: with ``where``, the number of such pairs and the first one's id.
    """
    missing = [pair_id for pair_id, label in zip(pairs["pair_id"], pairs["label"], strict=True) if label not in ID2LABEL]
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of {len(pairs)} pairs have no label, first pair_id {missing[0]!r}; give labelled pairs"
        )


def fingerprint(pairs: Dataset) -> str:
    """sha256 over the content of all records, whatever their order."""
    return hashlib.sha256(b"".join(sorted(_record_digests(pairs)))).hexdigest()


def record_hashes(pairs: Dataset) -> NDArray[np.int64]:
    """First 8 bytes of the sha256 of each record's content, ``[n]``: equal for equal records alone."""
    return np.frombuffer(b"".join(digest[:8] for digest in _record_digests(pairs)), np.int64)


def text_hash(premise: str, hypothesis: str) -> str:
    """sha256 of a pair's texts that ignores case, white space and Unicode composition."""
    return hashlib.sha256("\x1f".join(_folded(text) for text in (premise, hypothesis)).encode()).hexdigest()


def check_no_leak(training: Dataset, evaluation: Dataset, names: tuple[str, str]) -> None:
    """Refuse evaluation pairs that also stand in the training data, by :func:`text_hash`.

    Args:
        names: what to call the two in the message, training first.

    Raises:
        DataError: with the number of shared pairs and the first one's id.
    """
    trained = {text_hash(p, h) for p, h in zip(training["premise"], training["hypothesis"], strict=True)}
    columns = zip(evaluation["premise"], evaluation["hypothesis"], evaluation["pair_id"], strict=True)
    shared = [pair_id for premise, hypothesis, pair_id in columns if text_hash(premise, hypothesis) in trained]
    if shared:
        raise DataError(
            f"{len(shared)} of {len(evaluation)} pairs of {names[1]} also stand in {names[0]}, first pair_id {shared[0]!r}; "
            f"take them out of {names[0]}"
        )


def write_pairs(
    ingested: Ingested,
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    parents: dict[str, str] | None = None,
    meta: dict[str, Any] | None = None,
) -> None:
    """Publish pairs, quarantine and report as an artifact of kind ``pairs``; equal content gives equal bytes.

    The manifest's ``meta`` gets ``language``, ``pairs`` (their number) and ``fingerprint`` besides what is given.
    """
    facts = {
        "language": ingested.report["language"],
        "pairs": len(ingested.pairs),
        "fingerprint": fingerprint(ingested.pairs),
        **(meta or {}),
    }
    with publish(folder, kind=KIND, config=config, parents=parents, meta=facts) as staging:
        pq.write_table(_table(ingested.pairs), staging / "pairs.parquet", compression="zstd")
        # a lone surrogate has no UTF-8 form, but its backslash escape is what JSON writes for it
        lines = "".join(json.dumps(entry, ensure_ascii=False, default=str) + "\n" for entry in ingested.quarantine)
        (staging / "quarantine.jsonl").write_bytes(lines.encode("utf-8", "backslashreplace"))
        (staging / "report.json").write_text(canonical_json(ingested.report) + "\n", encoding="utf-8")


def read_pairs(folder: Path) -> Dataset:
    """Verify a folder that :func:`write_pairs` published and read its pairs.

    Raises:
        ArtifactError: if the folder is not whole or of another kind.
        DataError: if its table has other columns than the record.
    """
    path = Path(folder) / "pairs.parquet"
    verify(Path(folder), KIND)
    table = pq.read_table(path)
    if table.schema != FEATURES.arrow_schema:
        raise DataError(f"{path} has the columns {table.schema.to_string()}; write it again with this version of conlst")
    return Dataset(table)


def collected_in(folder: Path) -> dict[str, list[str]]:
    """Files of collected text that the pairs of a folder came from, by source; a version made of these pairs has taken them.

    They stand in the folder's report, not in the artifact's metadata: that travels on the command line of every later task, and
    a month of files does not fit there.

    Raises:
        ArtifactError: if the folder is not whole or of another kind.
    """
    verify(Path(folder), KIND)
    found: dict[str, list[str]] = json.loads((Path(folder) / "report.json").read_text(encoding="utf-8")).get("collected", {})
    return found


def _record(row: Mapping[str, Any], language: str) -> tuple[dict[str, Any], list[str]]:
    """The row as a record, and what had to be noted about it."""
    if MALFORMED in row:
        raise _BadRow("malformed row", str(row[MALFORMED]))
    said = row.get("language")
    if said and str(said).casefold() != language.casefold():
        raise _BadRow("wrong language", f"the row says {said!r}, expected {language!r}")
    premise, notes = _text(row, "premise")
    hypothesis, more = _text(row, "hypothesis")
    notes |= more
    label = _label(row.get("label"))
    genre, pair_id = (_short(row, name) for name in ("genre", "pair_id"))
    if not pair_id:
        notes.add("made_pair_ids")
        pair_id = hashlib.sha256(canonical_json([premise, hypothesis, label]).encode()).hexdigest()[:16]
    values = (premise, hypothesis, label, language, genre, pair_id)
    return dict(zip(FEATURES, values, strict=True)), sorted(notes)


def _text(row: Mapping[str, Any], name: str) -> tuple[str, set[str]]:
    raw = row.get(name)
    if raw is None:
        raise _BadRow(f"empty {name}", "" if name in row else f"the row has no {name}")
    if not isinstance(raw, str):
        raise _BadRow(f"{name} is not text", f"it is of type {type(raw).__name__}")
    _refuse_broken(raw, name)
    text = unicodedata.normalize("NFC", raw)
    notes = {"composed_unicode"} if text != raw else set()
    if _CONTROL.search(text):
        notes.add("control_characters")
        text = _CONTROL.sub(lambda match: " " if match[0].isspace() else "", text)
    if _DIRECTION_MARK.search(text):
        notes.add("direction_marks")
    text = text.strip()
    # spaces and invisible format characters alone are no sentence
    if all(unicodedata.category(character) in _INVISIBLE for character in text):
        raise _BadRow(f"empty {name}")
    if len(text) > MAX_CHARACTERS:
        raise _BadRow(f"{name} too long", f"{len(text)} characters, at most {MAX_CHARACTERS}")
    return text, notes


def _short(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    text = "" if value is None else str(value)
    _refuse_broken(text, name)
    return unicodedata.normalize("NFC", text).strip()


def _refuse_broken(text: str, name: str) -> None:
    if "\x00" in text:
        raise _BadRow(f"NUL in {name}", "the file may be binary or UTF-16")
    if _SURROGATE.search(text):
        raise _BadRow(f"lone surrogate in {name}", "half of a UTF-16 pair: the text was cut or decoded wrongly")


def _label(value: Any) -> int | None:
    if value is None or (isinstance(value, str) and value.strip() in _UNLABELLED):
        return None
    if not isinstance(value, str):
        raise _BadRow("unknown label", f"label {value!r} is not a name; write entailment, neutral or contradiction")
    try:
        return int(parse_label(value))
    except LabelError as error:
        raise _BadRow("unknown label", str(error)) from None


def _remember(record: dict[str, Any], number: int, seen: _Seen) -> list[str]:
    """Refuse a repeated pair or id; return notes."""
    texts, label, pair_id = (record["premise"], record["hypothesis"]), record["label"], record["pair_id"]
    labels = seen.pairs.setdefault(texts, {})
    if label in labels or (label is None and labels):
        raise _BadRow(_DUPLICATE, f"of row {labels.get(label, min(labels.values()))}")
    if pair_id in seen.ids:
        raise _BadRow("repeated pair_id", f"{pair_id!r} already names row {seen.ids[pair_id]}")
    labels[label] = number
    seen.ids[pair_id] = number
    return ["label_conflicts"] if len(labels) > 1 else []


def _refuse_bad_share(bad_rows: list[dict[str, Any]], total: int, max_bad_share: float) -> None:
    if not bad_rows or len(bad_rows) <= max_bad_share * total:
        return
    reason, count = Counter(entry["reason"] for entry in bad_rows).most_common(1)[0]
    example = next(entry for entry in bad_rows if entry["reason"] == reason)
    place = f"row {example['number']}"
    if "source" in example["row"]:
        place = f"row {example['row']['source_row']} of {example['row']['source']}"
    detail = f" ({example['detail']})" if example["detail"] else ""
    raise DataError(
        f"{len(bad_rows)} of {total} rows are bad, more than max_bad_share {max_bad_share} allows; most often: {reason}, "
        f"{count} times, first in {place}{detail}; mend the data or raise data.max_bad_share"
    )


def _nothing_left(total: int, genres: Sequence[str], other_genres: Counter[str]) -> str:
    if not total:
        return "there are no rows; check the source"
    if not other_genres:
        return f"no pair is left of {total} rows; check the source"
    found = sorted(genre for genre in other_genres if genre)
    if not found:
        return f"no row has a genre to filter by ({', '.join(genres)}); leave data.genres empty for this source"
    return f"no pair is of the genres {', '.join(genres)}; the data has {', '.join(found)}"


def _label_counts(labels: list[int | None]) -> dict[str, int]:
    counts = Counter(labels)
    return {name: counts[value] for value, name in ID2LABEL.items()} | {"unlabelled": counts[None]}


def _folded(text: str) -> str:
    # casefold can undo the composition, hence NFC on both sides of it
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split())


def _record_digests(pairs: Dataset) -> list[bytes]:
    return [hashlib.sha256(canonical_json(record).encode()).digest() for record in _table(pairs).to_pylist()]


def _table(pairs: Dataset) -> pa.Table:
    """The columns of the record as one plain Arrow table, in the data set's current order."""
    table: pa.Table = pairs.with_format("arrow")[:]
    return table.select(list(FEATURES)).cast(FEATURES.arrow_schema).combine_chunks()
