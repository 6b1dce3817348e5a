import json
import multiprocessing
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import boto3
import pytest
from botocore.config import Config as ClientConfig
from botocore.exceptions import ClientError

from conlst.contract import artifacts
from conlst.contract.artifacts import MANIFEST, Manifest, publish, verify
from conlst.contract.errors import ArtifactError, BackendError
from conlst.platform import objects
from pipelines.local_services import free_port
from services import Requests, environment

READS = {"HeadObject", "GetObject"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONLST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "blobs"


@pytest.fixture
def no_waiting(monkeypatch):
    """Retries happen at once; their number is what the tests look at."""
    waits = []
    monkeypatch.setattr("botocore.endpoint.time.sleep", waits.append)
    return waits


@pytest.fixture
def folder(tmp_path):
    return made(tmp_path / "model", weights=b"w" * 1000, table=b"shared")


def made(path: Path, **files: bytes) -> Path:
    with publish(path, kind="model", meta={"language": "sw"}) as staging:
        (staging / "deep").mkdir()
        for name, content in files.items():
            (staging / "deep" / name).write_bytes(content)
        (staging / "config.json").write_text("{}")
    return path


def put(uri: str, content: bytes, **extra) -> None:
    address = objects.Address.parse(uri)
    boto3.client("s3").put_object(Bucket=address.bucket, Key=address.key, Body=content, **extra)


def keys(uri: str) -> set[str]:
    bucket = objects.Address.parse(f"{uri}/x").bucket
    return {item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])}


def test_a_folder_comes_back_byte_for_byte(bucket, folder, tmp_path):
    uri = objects.push_folder(folder, f"{bucket}/models")
    digest = verify(folder).digest
    assert uri == f"{bucket}/models/manifests/{digest}.json"
    assert objects.digest_of(uri) == digest
    fetched = objects.fetch_folder(uri, tmp_path / "fetched")
    assert verify(fetched).digest == digest
    assert (fetched / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()
    assert not list(tmp_path.rglob("*.partial"))


def test_keys_are_the_contents_and_equal_files_are_one_object(bucket, tmp_path):
    twin = made(tmp_path / "twin", one=b"same", two=b"same")
    objects.push_folder(twin, f"{bucket}/models")
    entries = verify(twin).files.values()
    blobs = {f"models/blobs/{entry.sha256}" for entry in entries}
    assert len(blobs) == 2 < len(entries)
    assert keys(bucket) == blobs | {f"models/manifests/{verify(twin).digest}.json"}


def test_a_second_push_sends_nothing(bucket, folder):
    uri = objects.push_folder(folder, bucket + "/m")
    with Requests() as requests:
        assert objects.push_folder(folder, bucket + "/m") == uri
    assert set(requests.attempts) == READS


def test_a_push_sends_only_what_is_new(bucket, folder, tmp_path):
    objects.push_folder(folder, bucket + "/m")
    with Requests() as requests:
        objects.push_folder(made(tmp_path / "next", weights=b"other", table=b"shared"), bucket + "/m")
    assert requests.attempts["PutObject"] == 2  # the new weights and the new manifest


def test_a_blob_without_the_right_size_or_record_is_sent_again(bucket, folder, tmp_path):
    entry = verify(folder).files["deep/weights"]
    put(f"{bucket}/m/blobs/{entry.sha256}", b"short", Metadata={"sha256": entry.sha256})
    other = verify(folder).files["deep/table"]
    put(f"{bucket}/m/blobs/{other.sha256}", b"SHARED", Metadata={"sha256": "0" * 64})
    uri = objects.push_folder(folder, bucket + "/m")
    verify(objects.fetch_folder(uri, tmp_path / "fetched"))


def test_large_files_go_in_parts(bucket, tmp_path, monkeypatch):
    from boto3.s3.transfer import TransferConfig

    part = 5 << 20
    monkeypatch.setattr(objects, "_TRANSFER", TransferConfig(multipart_threshold=part, multipart_chunksize=part))
    large = made(tmp_path / "large", weights=os.urandom(2 * part + 7))
    with Requests() as requests:
        uri = objects.push_folder(large, bucket + "/m")
    assert requests.attempts["UploadPart"] == 3
    with Requests() as requests:
        objects.push_folder(large, bucket + "/m")
    assert set(requests.attempts) == READS
    verify(objects.fetch_folder(uri, tmp_path / "fetched"))


def test_an_unpublished_or_altered_folder_is_not_pushed(bucket, folder, tmp_path):
    (folder / "deep" / "weights").write_bytes(b"W" * 1000)
    with pytest.raises(ArtifactError, match="weights"):
        objects.push_folder(folder, bucket + "/m")
    with pytest.raises(ArtifactError, match="never published"):
        objects.push_folder(tmp_path, bucket + "/m")
    assert keys(bucket) == set()


def test_a_shared_file_is_fetched_and_stored_once(bucket, folder, tmp_path, cache):
    first = objects.push_folder(folder, bucket + "/m")
    second = objects.push_folder(made(tmp_path / "next", weights=b"other", table=b"shared"), bucket + "/m")
    objects.fetch_folder(first, tmp_path / "a")
    with Requests() as requests:
        objects.fetch_folder(second, tmp_path / "b")
    assert requests.attempts["GetObject"] == 2  # its manifest and its own weights
    assert (tmp_path / "a/deep/table").samefile(tmp_path / "b/deep/table")
    assert (cache / verify(folder).files["deep/table"].sha256).stat().st_mode & 0o777 == 0o444


def test_a_damaged_cache_heals(bucket, folder, tmp_path, cache):
    uri = objects.push_folder(folder, bucket + "/m")
    objects.fetch_folder(uri, tmp_path / "a")
    for blob in cache.iterdir():
        size = blob.stat().st_size
        blob.unlink()
        blob.write_bytes(b"?" * size)
    verify(objects.fetch_folder(uri, tmp_path / "b"))


def test_blobs_are_removed_once_no_folder_has_them_and_nobody_just_fetched_them(bucket, folder, tmp_path, cache):
    uri = objects.push_folder(folder, bucket + "/m")
    kept, gone = objects.fetch_folder(uri, tmp_path / "a"), made(tmp_path / "next", weights=b"other", table=b"shared")
    shutil.rmtree(objects.fetch_folder(objects.push_folder(gone, bucket + "/m"), tmp_path / "b"))
    assert objects.remove_unused_blobs() == 0
    for blob in cache.iterdir():
        os.utime(blob, (1000, 1000))
    assert objects.remove_unused_blobs() == len(b"other")
    assert {blob.name for blob in cache.iterdir()} == {entry.sha256 for entry in verify(kept).files.values()}
    # looked up just now, and not linked to yet
    shutil.rmtree(kept)
    for blob in cache.iterdir():
        os.utime(blob, (1000, 1000))
    shutil.rmtree(objects.fetch_folder(uri, tmp_path / "c"))
    assert objects.remove_unused_blobs() == 0


def test_a_changed_environment_is_heeded(bucket, folder, monkeypatch):
    objects.push_folder(folder, bucket + "/m")
    # undone before the bucket is, which leaves the environment to other tests as it found it
    with monkeypatch.context() as changed:
        changed.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
        changed.setattr(objects, "_CLIENT", objects._CLIENT.merge(ClientConfig(retries={"total_max_attempts": 1})))
        with pytest.raises(BackendError, match="cannot be reached"):
            objects.list_objects(bucket + "/m")


def test_fetching_what_is_there_asks_nobody(bucket, folder, tmp_path):
    uri = objects.push_folder(folder, bucket + "/m")
    objects.fetch_folder(uri, tmp_path / "a")
    with Requests() as requests:
        assert objects.fetch_folder(uri, tmp_path / "a") == tmp_path / "a"
    assert requests.attempts == Counter()


@pytest.mark.parametrize("content", ["other", "damaged", "unpublished"])
def test_fetch_never_replaces_something_else(bucket, folder, tmp_path, content):
    uri = objects.push_folder(folder, bucket + "/m")
    occupied = made(tmp_path / "occupied", weights=b"mine") if content == "other" else tmp_path / "occupied"
    if content == "damaged":
        objects.fetch_folder(uri, occupied)
        (occupied / "notes.txt").write_text("mine")
    if content == "unpublished":
        occupied.mkdir()
        (occupied / "notes.txt").write_text("mine")
    before = sorted(occupied.rglob("*"))
    with pytest.raises(objects.OccupiedError, match=r"occupied .*remove it or fetch into another folder") as refused:
        objects.fetch_folder(uri, occupied)
    assert refused.value.folder == occupied
    assert sorted(occupied.rglob("*")) == before


def test_an_empty_folder_is_filled(bucket, folder, tmp_path):
    uri = objects.push_folder(folder, bucket + "/m")
    (tmp_path / "out").mkdir()
    verify(objects.fetch_folder(uri, tmp_path / "out"))


@pytest.mark.parametrize("altered", [b"W" * 1000, b"w" * 999, b""])
def test_a_blob_of_other_bytes_is_refused(bucket, folder, tmp_path, cache, altered):
    uri = objects.push_folder(folder, bucket + "/m")
    sha256 = verify(folder).files["deep/weights"].sha256
    put(f"{bucket}/m/blobs/{sha256}", altered, Metadata={"sha256": sha256})
    with pytest.raises(ArtifactError, match=sha256):
        objects.fetch_folder(uri, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
    assert not (cache / sha256).exists()
    assert not list(tmp_path.rglob("*.partial"))


def test_a_manifest_of_other_bytes_is_refused(bucket, folder, tmp_path):
    uri = objects.push_folder(folder, bucket + "/m")
    manifest = json.loads((folder / MANIFEST).read_text())
    put(uri, Manifest(**manifest | {"files": {}, "kind": "other"}).to_json().encode())
    for read in (lambda: objects.fetch_folder(uri, tmp_path / "fetched"), lambda: objects.check_folder(uri)):
        with pytest.raises(ArtifactError, match="not the one its name says"):
            read()
    with pytest.raises(ArtifactError, match="delete it and push"):
        objects.push_folder(folder, bucket + "/m")


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "manifest.json"])
def test_a_hostile_manifest_writes_nothing(bucket, folder, tmp_path, name):
    objects.push_folder(folder, bucket + "/m")
    entry = verify(folder).files["deep/weights"]
    hostile = Manifest("model", {name: entry})
    uri = f"{bucket}/m/manifests/{hostile.digest}.json"
    put(uri, hostile.to_json().encode())
    with pytest.raises(ArtifactError, match=re.escape(name) if name != MANIFEST else "lists itself"):
        objects.fetch_folder(uri, tmp_path / "in" / "fetched")
    assert not list((tmp_path / "in").iterdir())


def test_check_folder_finds_missing_and_altered_blobs(bucket, folder):
    uri = objects.push_folder(folder, bucket + "/m")
    assert objects.check_folder(uri).digest == verify(folder).digest
    sha256 = verify(folder).files["deep/weights"].sha256
    put(f"{bucket}/m/blobs/{sha256}", b"w" * 1000)
    with pytest.raises(ArtifactError, match="deep/weights"):
        objects.check_folder(uri)
    boto3.client("s3").delete_object(Bucket=bucket.removeprefix("s3://"), Key=f"m/blobs/{sha256}")
    with pytest.raises(ArtifactError, match="deep/weights"):
        objects.check_folder(uri)


@pytest.mark.usefixtures("no_waiting")
def test_a_crash_before_the_manifest_leaves_nothing_readable(bucket, folder, tmp_path):
    digest = verify(folder).digest
    manifest_key = f"m/manifests/{digest}.json"

    def crash(operation, number):
        return "reset" if operation == "PutObject" and number > 3 else None

    with Requests(crash), pytest.raises(BackendError):
        objects.push_folder(folder, bucket + "/m")
    assert len(keys(bucket)) == 3
    assert manifest_key not in keys(bucket)
    with pytest.raises(BackendError, match="no such object"):
        objects.fetch_folder(f"{bucket}/{manifest_key}", tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
    # and the next push goes on where the crash was
    with Requests() as requests:
        objects.push_folder(folder, bucket + "/m")
    assert requests.attempts["PutObject"] == 1


@pytest.mark.parametrize("fault", [500, 503, "reset"])
def test_passing_faults_are_retried(bucket, folder, tmp_path, no_waiting, fault):
    with Requests(lambda _operation, number: fault if number <= 2 else None) as requests:
        uri = objects.push_folder(folder, bucket + "/m")
        verify(objects.fetch_folder(uri, tmp_path / "fetched"))
    assert requests.attempts["PutObject"] == 4 + 2
    assert len(no_waiting) == 3 * 2  # HEAD, PUT and GET


def test_a_connection_cut_within_a_body_is_retried(bucket, folder, tmp_path):
    uri = objects.push_folder(folder, bucket + "/m")
    with Requests(lambda operation, number: "cut" if (operation, number) == ("GetObject", 2) else None) as requests:
        verify(objects.fetch_folder(uri, tmp_path / "fetched"))
    assert requests.attempts["GetObject"] == 4 + 1


def test_connections_always_cut_leave_nothing(bucket, folder, tmp_path, cache):
    uri = objects.push_folder(folder, bucket + "/m")
    with (
        Requests(lambda operation, number: "cut" if operation == "GetObject" and number > 1 else None) as requests,
        pytest.raises(BackendError, match="cannot be reached"),
    ):
        objects.fetch_folder(uri, tmp_path / "fetched")
    assert requests.attempts["GetObject"] <= 1 + 5
    assert not (tmp_path / "fetched").exists()
    assert not list(cache.iterdir())


@pytest.mark.parametrize("fault", [500, 503, "reset"])
@pytest.mark.usefixtures("no_waiting")
def test_lasting_faults_end_after_five_attempts(bucket, folder, tmp_path, fault):
    uri = objects.push_folder(folder, bucket + "/m")
    with Requests(lambda _operation, _number: fault) as requests, pytest.raises(BackendError, match=re.escape(uri)):
        objects.fetch_folder(uri, tmp_path / "fetched")
    assert requests.attempts == {"HeadObject": 5}
    assert not (tmp_path / "fetched").exists()


@pytest.mark.usefixtures("no_waiting")
def test_denial_is_not_retried(bucket, folder):
    with Requests(lambda *_: 403) as requests, pytest.raises(BackendError, match="denied"):
        objects.push_folder(folder, bucket + "/m")
    assert requests.attempts.total() == 1


@pytest.mark.usefixtures("no_waiting")
def test_a_lost_answer_to_the_manifest_is_not_an_error(bucket, folder):
    """The first attempt is stored though its answer breaks; the retry then finds the name taken."""
    uri = f"{bucket}/m/manifests/{verify(folder).digest}.json"

    def plan(operation, number):
        if (operation, number) != ("PutObject", 4):
            return None
        put(uri, (folder / MANIFEST).read_bytes())
        return "reset"

    with Requests(plan):
        assert objects.push_folder(folder, bucket + "/m") == uri


def test_what_is_missing_is_named(bucket, folder, tmp_path):
    absent = f"manifests/{'0' * 64}.json"
    for uri, words in {
        f"s3://no-such-bucket/m/{absent}": "bucket 'no-such-bucket' does not exist",
        f"{bucket}/m/{absent}": "no such object",
    }.items():
        with pytest.raises(BackendError, match=words) as caught:
            objects.fetch_folder(uri, tmp_path / "fetched")
        assert uri in str(caught.value)
    with pytest.raises(BackendError, match="bucket 'no-such-bucket' does not exist"):
        objects.push_folder(folder, "s3://no-such-bucket/m")
    with pytest.raises(BackendError, match="bucket 'no-such-bucket' does not exist"):
        objects.fetch_file("s3://no-such-bucket/pairs.tsv", tmp_path)
    with pytest.raises(BackendError, match="no such object"):
        objects.fetch_file(f"{bucket}/pairs.tsv", tmp_path)


def test_without_credentials_the_default_chain_is_named(folder, tmp_path):
    nothing = {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
    }
    absent = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ROLE_ARN")
    with environment(nothing, absent), pytest.raises(BackendError, match=r"no usable S3 credentials.*AWS_ACCESS_KEY_ID"):
        objects.push_folder(folder, "s3://bucket/m")
    with environment(nothing | {"AWS_PROFILE": "absent"}, absent), pytest.raises(BackendError, match=r"profile \(absent\)"):
        objects.push_folder(folder, "s3://bucket/m")


@pytest.mark.usefixtures("no_waiting")
def test_an_absent_server_is_named(folder):
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    with environment(keys), pytest.raises(BackendError, match=r"127\.0\.0\.1:9.*AWS_ENDPOINT_URL_S3"):
        objects.push_folder(folder, "s3://bucket/m")


def test_a_mistyped_endpoint_is_named_with_its_variable(folder):
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL_S3": "minio:9000"}
    with environment(keys), pytest.raises(BackendError, match=r"minio:9000.*AWS_ENDPOINT_URL_S3 must be a whole address"):
        objects.push_folder(folder, "s3://bucket/m")


@pytest.mark.parametrize("uri", ["bucket/key", "s3://bucket", "s3://b/key", "s3://bucket/a/../b", "s3://bucket//a", "s3:///key"])
def test_malformed_addresses_are_refused(uri):
    with pytest.raises(BackendError, match="of the form s3://bucket/key"):
        objects.Address.parse(uri)


def test_digest_of_wants_the_address_of_a_manifest():
    with pytest.raises(BackendError, match="manifests/<digest>"):
        objects.digest_of("s3://bucket/model/weights")


def test_a_data_file_comes_back_and_is_replaced(bucket, tmp_path):
    path = tmp_path / "pairs.tsv"
    for text in ("one", "two"):
        path.write_text(text)
        objects.push_file(path, f"{bucket}/data/pairs.tsv")
        fetched = objects.fetch_file(f"{bucket}/data/pairs.tsv", tmp_path / "in")
        assert (fetched.name, fetched.read_text()) == ("pairs.tsv", text)


def test_a_data_file_of_other_bytes_is_refused(bucket, tmp_path):
    put(f"{bucket}/pairs.tsv", b"altered", Metadata={"sha256": "0" * 64})
    with pytest.raises(ArtifactError, match=r"pairs\.tsv"):
        objects.fetch_file(f"{bucket}/pairs.tsv", tmp_path / "in")
    assert not list((tmp_path / "in").iterdir())


def test_a_data_file_that_others_uploaded_is_taken(bucket, tmp_path):
    put(f"{bucket}/pairs.tsv", b"from elsewhere")
    assert objects.fetch_file(f"{bucket}/pairs.tsv", tmp_path).read_bytes() == b"from elsewhere"


def test_localize(bucket, folder, tmp_path):
    for source in ("sample:sw", "hub:some/model", "data/pairs.tsv"):
        assert objects.localize(source, tmp_path / "in") == source
    uri = objects.push_folder(folder, bucket + "/m")
    assert verify(objects.localize(uri, tmp_path / "in")).digest == verify(folder).digest
    for language in ("fr", "sw"):
        put(f"{bucket}/{language}/pairs.tsv", language.encode())
    paths = [objects.localize(f"{bucket}/{language}/pairs.tsv", tmp_path / "in") for language in ("fr", "sw")]
    assert [Path(path).read_text() for path in paths] == ["fr", "sw"]


def _fetch(uri: str, folder: str, cache: str, results) -> None:
    with environment({"CONLST_CACHE": cache}):
        try:
            results.put(verify(objects.fetch_folder(uri, Path(folder))).digest)
        except Exception as error:
            results.put(repr(error))


@pytest.mark.slow
def test_real_server_round_trip_in_parts(s3, tmp_path, monkeypatch):
    from boto3.s3.transfer import TransferConfig

    monkeypatch.setattr(objects, "_TRANSFER", TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20))
    large = made(tmp_path / "large", weights=os.urandom(12 << 20), empty=b"")
    uri = objects.push_folder(large, f"s3://{s3.bucket}/real")
    with Requests() as requests:
        objects.push_folder(large, f"s3://{s3.bucket}/real")
    assert set(requests.attempts) == READS
    assert objects.check_folder(uri).digest == verify(large).digest
    assert verify(objects.fetch_folder(uri, tmp_path / "fetched")).digest == verify(large).digest


@pytest.mark.slow
def test_real_server_takes_no_second_manifest(s3, folder):
    manifest = verify(folder)
    target = objects.Address.parse(f"s3://{s3.bucket}/race/manifests/{manifest.digest}.json")
    put(str(target), b"first")
    assert objects._put_manifest(boto3.client("s3"), target, manifest) == b"first"


def test_of_two_writers_of_a_new_object_one_is_told(bucket):
    uri = f"{bucket}/champions/sw/000001.json"
    assert objects.put_new(b"first", uri)
    assert not objects.put_new(b"second", uri)
    assert objects.read_object(uri) == b"first"


class Conflicting:
    """A client whose first writes meet others, none of which is carried out."""

    def __init__(self, *codes: str) -> None:
        self._codes = list(codes)
        self.written: list[bytes] = []

    def put_object(self, Body: bytes, **_rest) -> None:
        if self._codes:
            raise ClientError({"Error": {"Code": self._codes.pop(0)}}, "PutObject")
        self.written.append(Body)


@pytest.fixture
def pauses(monkeypatch):
    pauses = []
    monkeypatch.setattr(objects.time, "sleep", pauses.append)
    return pauses


def test_writers_that_met_try_again_and_one_that_came_first_is_believed(pauses):
    def put(*codes: str) -> tuple[bool, list[bytes]]:
        client = Conflicting(*codes)
        return objects._put_if_absent(client, objects.Address("bucket", "key"), b"new"), client.written

    assert put("ConditionalRequestConflict", "409") == (True, [b"new"])
    assert len(pauses) == 2
    assert put("ConditionalRequestConflict", "PreconditionFailed") == (False, [])
    with pytest.raises(ClientError, match="ConditionalRequestConflict"):
        put(*["ConditionalRequestConflict"] * 9)


@pytest.mark.usefixtures("pauses", "no_waiting")
def test_a_lasting_conflict_is_an_error_and_not_a_lost_race(bucket):
    with Requests(lambda *_: 409) as requests, pytest.raises(BackendError, match="ConditionalRequestConflict"):
        objects.put_new(b"", f"{bucket}/champions/sw/000001.json")
    assert requests.attempts["PutObject"] == 5


def test_what_killed_processes_left_is_cleared_away_at_the_next_fetch(bucket, folder, tmp_path, cache, monkeypatch):
    uri = objects.push_folder(folder, bucket + "/m")
    blob, unfinished = (f".{name * 64}.{'0' * 32}.partial" for name in "ab")
    cache.mkdir(parents=True)
    for left in (cache / blob, cache / unfinished, tmp_path / f".fetched.{'1' * 32}.partial"):
        left.write_bytes(b"half")
    objects.fetch_folder(uri, tmp_path / "fetched")
    objects.remove_unused_blobs()
    assert (cache / blob).exists()
    assert (tmp_path / f".fetched.{'1' * 32}.partial").exists()

    monkeypatch.setattr(artifacts, "_LEFT_BEHIND_SECONDS", -1.0)
    shutil.rmtree(tmp_path / "fetched")
    objects.fetch_folder(uri, tmp_path / "fetched")
    assert not (tmp_path / f".fetched.{'1' * 32}.partial").exists()
    objects.remove_unused_blobs()
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_objects_are_listed_in_the_order_of_their_keys(bucket):
    for name in ("b", "a", "ab/c"):
        objects.put_new(b"", f"{bucket}/list/{name}")
    objects.put_new(b"", f"{bucket}/listed-elsewhere")
    assert objects.list_objects(f"{bucket}/list") == [f"{bucket}/list/{name}" for name in ("a", "ab/c", "b")]
    assert objects.list_objects(f"{bucket}/nothing") == []


def test_the_root_of_an_address(bucket):
    digest = "0" * 64
    assert objects.root_of(f"{bucket}/models/nli/manifests/{digest}.json") == f"{bucket}/models/nli"
    with pytest.raises(BackendError, match="at the root of its bucket"):
        objects.root_of(f"{bucket}/manifests/{digest}.json")


@pytest.mark.slow
def test_real_server_refuses_wrong_keys(s3, folder, tmp_path):
    with environment({"AWS_SECRET_ACCESS_KEY": "wrong"}), pytest.raises(BackendError, match="denied"):
        objects.push_folder(folder, f"s3://{s3.bucket}/real")
    with pytest.raises(BackendError, match="bucket 'no-such-bucket' does not exist"):
        objects.push_folder(folder, "s3://no-such-bucket/m")
    with pytest.raises(BackendError, match="no such object"):
        objects.fetch_file(f"s3://{s3.bucket}/absent", tmp_path)


@pytest.mark.slow
def test_processes_share_one_cache_and_one_target(s3, tmp_path):
    large = made(tmp_path / "large", weights=os.urandom(4 << 20), table=b"shared" * 1000)
    uri = objects.push_folder(large, f"s3://{s3.bucket}/shared")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    targets = ["a", "b", "same", "same"]
    processes = [
        context.Process(target=_fetch, args=(uri, str(tmp_path / "out" / target), str(tmp_path / "own"), results))
        for target in targets
    ]
    for process in processes:
        process.start()
    digests = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert digests == [verify(large).digest] * len(targets)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "same"]
    assert len(list((tmp_path / "own" / "blobs").iterdir())) == 3
