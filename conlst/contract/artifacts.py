"""Artifact folders: built beside their final name, renamed, and readable only when every byte is there.

A folder is *published* when its ``manifest.json``, written last, lists the sha256 and size of every other file. Readers call
:func:`verify`, which refuses a folder without a manifest or with a wrong, missing or additional byte. A manifest holds no time
and no host, so the same content always has the same digest.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from conlst import __version__
from conlst.contract.errors import ArtifactError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_SCHEMA = 1
# what nobody has touched for this long belongs to no living process
_LEFT_BEHIND_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """What a published folder says of itself.

    Attributes:
        kind: what the folder is, for example ``model``, ``pairs``, ``evaluation``, ``onnx``.
        files: relative POSIX path to sha256 and size, for every file but the manifest.
        config: the configuration that made it.
        parents: role to digest of the folders it was made from, for example ``{"source": "ab…"}``.
        meta: small facts for readers, for example the language.
        code: version of conlst that wrote it.
    """

    kind: str
    files: dict[str, FileEntry]
    config: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    code: str = __version__
    schema: int = _SCHEMA

    def to_json(self) -> str:
        return canonical_json(asdict(self))

    @property
    def digest(self) -> str:
        """sha256 of the canonical manifest: the identity of the folder's whole content."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str, where: str) -> "Manifest":
        """Parse a manifest.

        Raises:
            ArtifactError: if the text is not a manifest of a known schema or names a path outside its folder.
        """
        try:
            raw = json.loads(text)
            files = {path: FileEntry(**entry) for path, entry in raw.pop("files").items()}
            manifest = cls(files=files, **raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactError(f"{where} is not a conlst manifest ({error}); publish the folder again") from error
        if manifest.schema != _SCHEMA:
            raise ArtifactError(f"{where} has manifest schema {manifest.schema}, this conlst reads {_SCHEMA}")
        for path in manifest.files:
            parts = PurePosixPath(path).parts
            if not parts or path != "/".join(parts) or ".." in parts or PurePosixPath(path).is_absolute() or "\\" in path:
                raise ArtifactError(f"{where} names the path {path!r}, which leaves its folder")
        return manifest


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values have equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def publish(
    folder: Path,
    *,
    kind: str,
    config: dict[str, Any] | None = None,
    parents: dict[str, str] | None = None,
    meta: dict[str, Any] | None = None,
) -> Iterator[Path]:
    """Yield an empty sibling folder to write into; on success give it its manifest and its final name.

    An exception inside the block, or a kill at any moment, leaves ``folder`` complete (the old content or the new) or absent,
    never half-written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file, in the way of the folder to publish; move it")
    staging = partial_of(folder)
    staging.mkdir()
    try:
        yield staging
        manifest = Manifest(kind, _entries(staging), config or {}, parents or {}, meta or {})
        _write_synced(staging / MANIFEST, manifest.to_json())
        _swap(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def verify(folder: Path, kind: str | None = None) -> Manifest:
    """Read a folder's manifest and check every file against it.

    Raises:
        ArtifactError: naming the first file that is missing, altered or not listed.
    """
    manifest = read_manifest(folder, kind)
    found = {path.relative_to(folder).as_posix() for path in _files(folder)}
    if surplus := sorted(found - manifest.files.keys()):
        raise ArtifactError(f"{folder} holds {surplus[0]}, which its manifest does not list")
    for name, entry in manifest.files.items():
        path = folder / name
        if name not in found:
            raise ArtifactError(f"{folder} lacks {name}; fetch or publish it again")
        if path.stat().st_size != entry.size or sha256_of(path) != entry.sha256:
            raise ArtifactError(f"{path} is not the file that was published; fetch or publish {folder} again")
    return manifest


def read_manifest(folder: Path, kind: str | None = None) -> Manifest:
    """Read a folder's manifest without hashing its files.

    Raises:
        ArtifactError: if there is none or the folder is of another kind.
    """
    folder = Path(folder)
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ArtifactError(f"{folder} has no {MANIFEST}: it was never published, or not completely") from None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{folder / MANIFEST} is not a conlst manifest ({error}); publish the folder again") from None
    manifest = Manifest.from_json(text, str(folder / MANIFEST))
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{folder} is of kind {manifest.kind!r}, expected {kind!r}")
    return manifest


def republish(folder: Path, target: Path) -> None:
    """Give a published folder a second place, the very same content under the same digest."""
    staging = partial_of(target)
    try:
        shutil.copytree(folder, staging, copy_function=lambda one, other: link_or_copy(Path(one), Path(other)))
        _swap(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def partial_of(target: Path) -> Path:
    """A new name beside ``target`` for what becomes it when it is whole; its parent is made.

    What processes killed long ago left beside ``target`` is cleared away.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent, re.escape(target.name))
    return target.parent / f".{target.name}.{uuid.uuid4().hex}.partial"


def remove_leftovers(parent: Path, names: str) -> None:
    """Remove what was to become, or gave way to, a file or folder of ``parent`` and was not touched for a day.

    Args:
        names: regular expression of the file's or folder's name.
    """
    left = re.compile(rf"\.{names}\.[0-9a-f]{{32}}\.(partial|old)")
    for path in parent.iterdir():
        if not left.fullmatch(path.name):
            continue
        try:
            # the time of the change, for links and renamed folders keep the older time of their content
            changed = max(one.lstat().st_ctime for one in (path, *path.rglob("*")))
            if changed > time.time() - _LEFT_BEHIND_SECONDS:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            # another process was first, or it is not ours to remove: no reason to stop
            log.info("%s is left where it is: %s", path, error)


def link_or_copy(source: Path, target: Path) -> None:
    """Give ``source`` a second name, by hard link where the file system allows: published files never change.

    Raises:
        FileExistsError: if ``target`` exists; copying into it would write through older links.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def _files(folder: Path) -> list[Path]:
    paths = sorted(folder.rglob("*"))
    if links := [path for path in paths if path.is_symlink()]:
        raise ArtifactError(f"{links[0]} is a symbolic link; an artifact folder holds plain files only")
    return [path for path in paths if path.is_file() and path != folder / MANIFEST]


def _entries(folder: Path) -> dict[str, FileEntry]:
    return {path.relative_to(folder).as_posix(): FileEntry(sha256_of(path), path.stat().st_size) for path in _files(folder)}


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _swap(staging: Path, folder: Path) -> None:
    # rename(2) replaces an empty folder but not a full one, so an old publication steps aside first
    aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.old"
    if folder.is_dir() and any(folder.iterdir()):
        folder.rename(aside)
    staging.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)
