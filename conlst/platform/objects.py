"""Artifact folders and data files in S3.

A published folder lies under a prefix as one object a distinct file, ``blobs/<sha256>``, and, written last, its manifest,
``manifests/<digest>.json``. The manifest's ``s3://`` address is the folder's address: it names the content, so nothing is ever
overwritten and folders share what they have in common. Credentials, region and endpoint come from boto3's default chain
(environment, profile, role); conlst takes no keys.
"""

import functools
import hashlib
import io
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config as ClientConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from s3transfer.exceptions import RetriesExceededError

from conlst.contract.artifacts import (
    MANIFEST,
    FileEntry,
    Manifest,
    link_or_copy,
    partial_of,
    remove_leftovers,
    sha256_of,
    verify,
)
from conlst.contract.cache import cache_folder
from conlst.contract.errors import ArtifactError, BackendError

log = logging.getLogger(__name__)

_CLIENT = ClientConfig(
    retries={"mode": "standard", "total_max_attempts": 5}, connect_timeout=5, read_timeout=60, user_agent_extra="conlst"
)
_TRANSFER = TransferConfig(multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=4)
_ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<key>.+)", re.DOTALL)
_MANIFEST_KEY = re.compile(r"(?:(?P<prefix>.+)/)?manifests/(?P<digest>[0-9a-f]{64})\.json")
_LOST_THE_RACE = ("PreconditionFailed", "412")
# writers met, and perhaps none of them has written: the answer asks for another try
_CONFLICT = ("ConditionalRequestConflict", "409")
_CONFLICT_PAUSES = (0.2, 0.5, 1.0, 2.0)
# between a look at a cached blob and the link to it lies the computation of its digest
_IN_USE_SECONDS = 600.0
_NOT_THERE = ("404", "NoSuchKey")
_DENIED = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")


@dataclass(frozen=True)
class Address:
    """``s3://bucket/key``."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: str) -> "Address":
        """Split an address.

        Raises:
            BackendError: if it is not of the form ``s3://bucket/key``.
        """
        match = _ADDRESS.fullmatch(uri)
        if match is None or {".", "..", ""} & set(match["key"].rstrip("/").split("/")):
            raise BackendError(f"{uri!r} is not an address of the form s3://bucket/key")
        return cls(match["bucket"], match["key"].rstrip("/"))

    def __truediv__(self, name: str) -> "Address":
        return Address(self.bucket, f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


class OccupiedError(ArtifactError):
    """What was to be fetched has something else in its place.

    Attributes:
        folder: that is in the way.
    """

    def __init__(self, folder: Path, message: str) -> None:
        super().__init__(message)
        self.folder = folder


def push_folder(folder: Path, prefix: str) -> str:
    """Upload a published folder and return the address of its manifest. What is there already is not sent again.

    Args:
        prefix: for example ``s3://bucket/models``.

    Raises:
        ArtifactError: if the folder does not verify, or another content holds its address.
        BackendError: if S3 cannot be reached or refuses.
    """
    manifest = verify(folder)
    root = Address.parse(prefix)
    target = root / f"manifests/{manifest.digest}.json"
    with _client(target) as client:
        known = _content_if_any(client, target)
        sent = 0
        for entry, path in {entry: folder / name for name, entry in manifest.files.items()}.items():
            blob = root / f"blobs/{entry.sha256}"
            if not _holds(client, blob, entry):
                _upload(client, path, blob, entry.sha256)
                sent += entry.size
        if known is None:
            known = _put_manifest(client, target, manifest)
    if _digest_of(known) != manifest.digest:
        raise ArtifactError(f"{target} holds something else than its name says; delete it and push {folder} again")
    log.info("pushed %s to %s, %d bytes sent", folder, target, sent)
    return str(target)


def fetch_folder(uri: str, folder: Path) -> Path:
    """Download the folder whose manifest is at ``uri``, verified byte by byte, and give it its name only when it is complete.

    Blobs are kept in the folder ``$CONLST_CACHE`` (default ``~/.cache/conlst``) and linked from there, so that a file that
    several folders share is fetched and stored once. A folder that already is this publication is left as it is.

    Raises:
        ArtifactError: if a byte differs from what was published.
        OccupiedError: if ``folder`` already holds something else, or this publication damaged.
        BackendError: if S3 cannot be reached, refuses, or has nothing at ``uri``.
    """
    folder = Path(folder)
    address = Address.parse(uri)
    root, digest = _split_manifest(address)
    if _is_in_place(folder, uri, digest):
        return folder
    staging = partial_of(folder)
    staging.mkdir()
    try:
        with _client(address) as client:
            manifest, content = _manifest(client, address, digest)
            for name, entry in manifest.files.items():
                target = staging / name
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(_cached(client, root / f"blobs/{entry.sha256}", entry), target)
        with (staging / MANIFEST).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            staging.rename(folder)
        except OSError:
            # another process may have fetched the same publication meanwhile
            if not _is_in_place(folder, uri, digest):
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def remove_unused_blobs() -> int:
    """Remove cached blobs that no fetched folder has a name of, and that nobody fetched in the last minutes.

    Returns:
        the bytes that were freed.
    """
    freed = 0
    if _blobs().is_dir():
        # a download that was killed is done again at once, and its blob then never again
        remove_leftovers(_blobs(), "[0-9a-f]{64}")
    for path in _blobs().glob("[0-9a-f]*"):
        found = path.stat()
        if found.st_nlink == 1 and found.st_mtime < time.time() - _IN_USE_SECONDS:
            path.unlink()
            freed += found.st_size
    return freed


def check_folder(uri: str) -> Manifest:
    """Check that a folder in S3 is complete without downloading it: its manifest, and size and recorded sha256 of every blob.

    Raises:
        ArtifactError: naming the first file that is missing or differs.
        BackendError: if S3 cannot be reached, refuses, or has nothing at ``uri``.
    """
    address = Address.parse(uri)
    root, digest = _split_manifest(address)
    with _client(address) as client:
        manifest, _ = _manifest(client, address, digest)
        for name, entry in manifest.files.items():
            blob = root / f"blobs/{entry.sha256}"
            if not _holds(client, blob, entry):
                raise ArtifactError(f"{name} of {uri} is missing or altered at {blob}; push it again with conlst push")
    return manifest


def push_file(path: Path, uri: str) -> None:
    """Upload one file under a name that may be overwritten, for data; its sha256 goes along as metadata.

    Raises:
        BackendError: if S3 cannot be reached or refuses.
    """
    address = Address.parse(uri)
    with _client(address) as client:
        _upload(client, path, address, sha256_of(path))


def fetch_file(uri: str, folder: Path) -> Path:
    """Download one object into ``folder`` under its own name, replacing an older download.

    Raises:
        ArtifactError: if its bytes are not those that :func:`push_file` recorded.
        BackendError: if S3 cannot be reached, refuses, or has nothing at ``uri``.
    """
    address = Address.parse(uri)
    target = Path(folder) / PurePosixPath(address.key).name
    with _client(address) as client, _beside(target) as partial:
        expected = client.head_object(Bucket=address.bucket, Key=address.key)["Metadata"].get("sha256")
        _download(client, address, partial)
        if expected is not None and sha256_of(partial) != expected:
            raise ArtifactError(f"{uri} is not the file that was pushed (sha256 differs); push it again")
    return target


def put_new(content: bytes, uri: str) -> bool:
    """Write an object unless there is one of its name; says whether this call did. Of several writers one wins.

    Raises:
        BackendError: if S3 cannot be reached or refuses.
    """
    address = Address.parse(uri)
    with _client(address) as client:
        return _put_if_absent(client, address, content)


def read_object(uri: str) -> bytes:
    """The content of a small object.

    Raises:
        BackendError: if S3 cannot be reached, refuses, or has nothing at ``uri``.
    """
    address = Address.parse(uri)
    with _client(address) as client:
        return _content(client, address)


def list_objects(prefix: str) -> list[str]:
    """Addresses of everything below ``prefix``, in the order of their keys.

    Raises:
        BackendError: if S3 cannot be reached or refuses.
    """
    address = Address.parse(prefix)
    with _client(address) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=address.bucket, Prefix=f"{address.key}/")
        return [str(Address(address.bucket, item["Key"])) for page in pages for item in page.get("Contents", [])]


def root_of(uri: str) -> str:
    """The prefix that a folder's address lies under: ``s3://bucket/prefix``.

    Raises:
        BackendError: if ``uri`` is not the address of a manifest, or its folder lies at the root of the bucket.
    """
    root = _split_manifest(Address.parse(uri))[0]
    if not root.key:
        raise BackendError(f"{uri} lies at the root of its bucket; publish below a prefix, s3://{root.bucket}/models")
    return str(root)


def localize(source: str, folder: Path) -> str | Path:
    """Bring what an address names to this machine; anything but an ``s3://`` address is returned as it is.

    Every address gets its own folder below ``folder``, so that equal file names do not meet.

    Raises:
        ArtifactError, OccupiedError, BackendError: as :func:`fetch_folder` and :func:`fetch_file`.
    """
    if not source.startswith("s3://"):
        return source
    own = Path(folder) / hashlib.sha256(source.encode()).hexdigest()[:16]
    if _MANIFEST_KEY.fullmatch(Address.parse(source).key):
        return fetch_folder(source, own)
    return fetch_file(source, own)


def digest_of(uri: str) -> str:
    """The digest that a folder's address names.

    Raises:
        BackendError: if ``uri`` is not the address of a manifest.
    """
    return _split_manifest(Address.parse(uri))[1]


def _split_manifest(address: Address) -> tuple[Address, str]:
    match = _MANIFEST_KEY.fullmatch(address.key)
    if match is None:
        raise BackendError(f"{address} is not the address of a published folder, s3://bucket/prefix/manifests/<digest>.json")
    return Address(address.bucket, match["prefix"] or ""), match["digest"]


def _is_in_place(folder: Path, uri: str, digest: str) -> bool:
    if not folder.exists() or not any(folder.iterdir()):
        return False
    try:
        found = verify(folder).digest
    except ArtifactError as error:
        message = f"{folder} is in the way of {uri} ({error}); remove it or fetch into another folder"
        raise OccupiedError(folder, message) from error
    if found != digest:
        raise OccupiedError(folder, f"{folder} holds another publication than {uri}; remove it or fetch into another folder")
    return True


def _manifest(client: Any, address: Address, digest: str) -> tuple[Manifest, bytes]:
    content = _content(client, address)
    if _digest_of(content) != digest:
        raise ArtifactError(f"the manifest at {address} is not the one its name says; delete it and push the folder again")
    manifest = Manifest.from_json(content.decode(), str(address))
    if MANIFEST in manifest.files:
        raise ArtifactError(f"the manifest at {address} lists itself; push the folder again")
    return manifest, content


def _digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _put_manifest(client: Any, target: Address, manifest: Manifest) -> bytes:
    content = manifest.to_json().encode()
    # else another writer, or our own request whose answer was lost, was first
    return content if _put_if_absent(client, target, content) else _content(client, target)


def _put_if_absent(client: Any, target: Address, content: bytes) -> bool:
    pauses = iter(_CONFLICT_PAUSES)
    while True:
        try:
            client.put_object(
                Bucket=target.bucket, Key=target.key, Body=content, ContentType=_media_type(target.key), IfNoneMatch="*"
            )
            return True
        except ClientError as error:
            if _code(error) in _LOST_THE_RACE:
                return False
            pause = next(pauses, None) if _code(error) in _CONFLICT else None
            if pause is None:
                raise
            time.sleep(pause)


def _media_type(key: str) -> str:
    return "application/json" if key.endswith(".json") else "application/octet-stream"


def _upload(client: Any, path: Path, target: Address, sha256: str) -> None:
    with path.open("rb") as file:
        client.upload_fileobj(file, target.bucket, target.key, ExtraArgs={"Metadata": {"sha256": sha256}}, Config=_TRANSFER)


def _cached(client: Any, blob: Address, entry: FileEntry) -> Path:
    """Path of a blob in the local cache, whose bytes were checked just now."""
    path = _blobs() / entry.sha256
    if path.is_file():
        # in use: see remove_unused_blobs
        path.touch()
        if _is(path, entry):
            return path
    with _beside(path) as partial:
        _download(client, blob, partial)
        if not _is(partial, entry):
            raise ArtifactError(f"{blob} is not the file that was published (size or sha256 differs); push its folder again")
        # folders hold further names of this very file: writing through one of them would alter all
        partial.chmod(0o444)
    return path


def _blobs() -> Path:
    return cache_folder() / "blobs"


def _is(path: Path, entry: FileEntry) -> bool:
    return path.stat().st_size == entry.size and sha256_of(path) == entry.sha256


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A temporary name that becomes ``target`` when the block succeeds; several processes may do so at once."""
    partial = partial_of(target)
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _holds(client: Any, blob: Address, entry: FileEntry) -> bool:
    try:
        head = client.head_object(Bucket=blob.bucket, Key=blob.key)
    except ClientError as error:
        if _code(error) in _NOT_THERE:
            return False
        raise
    return head["ContentLength"] == entry.size and head["Metadata"].get("sha256") == entry.sha256


def _content(client: Any, address: Address) -> bytes:
    # download_fileobj, and not get_object, because it also retries a connection that breaks within the body
    buffer = io.BytesIO()
    client.download_fileobj(address.bucket, address.key, buffer, Config=_TRANSFER)
    return buffer.getvalue()


def _content_if_any(client: Any, address: Address) -> bytes | None:
    try:
        return _content(client, address)
    except ClientError as error:
        if _code(error) in _NOT_THERE:
            return None
        raise


def _download(client: Any, address: Address, path: Path) -> None:
    with path.open("wb") as file:
        client.download_fileobj(address.bucket, address.key, file, Config=_TRANSFER)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _environment() -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_") or name == "HOME"))


@functools.lru_cache(maxsize=4)
def _client_of(environment: tuple[tuple[str, str], ...]) -> Any:  # noqa: ARG001
    """A client takes 0.2 s of CPU to make and may be shared by threads; it holds the environment that it was made in."""
    return boto3.session.Session().client("s3", config=_CLIENT)


@contextmanager
def _client(address: Address) -> Iterator[Any]:
    """A client of the default chain, whose errors are told with the address and what to do."""
    client = None
    try:
        client = _client_of(_environment())
        yield client
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, ProfileNotFound) as error:
        raise BackendError(
            f"{address}: no usable S3 credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, set "
            "AWS_PROFILE, or give the pod a role"
        ) from error
    except ClientError as error:
        raise BackendError(f"{address}: {_explain(client, error, address.bucket)}") from error
    except (BotoCoreError, RetriesExceededError) as error:
        raise BackendError(f"{address}: S3 cannot be reached ({error}); check AWS_ENDPOINT_URL_S3 and the network") from error
    except ValueError as error:
        if client is not None:
            raise
        raise BackendError(
            f"{address}: no S3 client can be made ({error}); AWS_ENDPOINT_URL_S3 must be a whole address such as http://minio:9000"
        ) from error


def _explain(client: Any, error: ClientError, bucket: str) -> str:
    code = _code(error)
    if code == "404":
        # an answer to HEAD has no body that could say what is missing
        code = "NoSuchBucket" if not _is_bucket(client, bucket) else "NoSuchKey"
    if code == "NoSuchBucket":
        return f"the bucket {bucket!r} does not exist; create it or correct the address"
    if code == "NoSuchKey":
        return "there is no such object; correct the address or push it again"
    if code in _DENIED:
        return (
            f"access is denied ({code}); check the credentials and their rights on the bucket {bucket!r}: "
            "GetObject, PutObject, ListBucket"
        )
    return f"S3 refused {error.operation_name} after its retries ({error})"


def _is_bucket(client: Any, bucket: str) -> bool:
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        return _code(error) != "404"
    return True
