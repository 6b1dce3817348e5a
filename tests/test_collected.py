import json

import pytest

from conlst.contract.errors import ConfigError
from conlst.platform import collected, objects


@pytest.fixture
def source(bucket: str) -> str:
    for language, name in (("sw", "date=2026-01-01/a"), ("sw", "date=2026-01-02/b"), ("fr", "date=2026-01-01/c")):
        objects.put_new(b"", f"{bucket}/feedback/language={language}/{name}.parquet")
    objects.put_new(b"", f"{bucket}/feedback/language=sw/half-written.tmp")
    return f"collected:{bucket}/feedback"


def names(files: list[str]) -> list[str]:
    return [file.rsplit("/", 1)[1] for file in files]


def test_what_a_run_took_is_not_given_again_and_the_rest_is(source):
    assert names(collected.new_files(source, "sw")) == ["a.parquet", "b.parquet"]
    first = collected.new_files(source, "sw")[:1]
    collected.take(source, "sw", "job-1", first)
    assert names(collected.new_files(source, "sw")) == ["b.parquet"]
    assert names(collected.new_files(source, "fr")) == ["c.parquet"]
    # the step that registers may be tried again
    collected.take(source, "sw", "job-1", first)
    collected.take(source, "sw", "job-2", collected.new_files(source, "sw"))
    assert collected.new_files(source, "sw") == []


def test_a_language_whose_code_begins_another_is_apart(source, bucket):
    objects.put_new(b"", f"{bucket}/feedback/language=swa/d.parquet")
    assert names(collected.new_files(source, "sw")) == ["a.parquet", "b.parquet"]


def test_collected_text_stands_for_its_new_files_between_other_addresses(source):
    files, collected_files = collected.files_of(["before.tsv", source, "s3://b/after.tsv"], "sw")
    assert names([f"/{file}" for file in files]) == ["before.tsv", "a.parquet", "b.parquet", "after.tsv"]
    assert collected_files == {source: files[1:3]}
    assert collected.files_of(["sample:sw"], "sw") == (["sample:sw"], {})


def test_a_language_takes_its_own_files_of_a_pool_of_several(source):
    both = collected.new_files(source, "sw") + collected.new_files(source, "fr")
    collected.take(source, "sw", "job-1", both)
    assert collected.new_files(source, "sw") == []
    assert names(collected.new_files(source, "fr")) == ["c.parquet"]
    collected.take(source, "fr", "job-1", both)
    assert collected.new_files(source, "fr") == []


def test_a_language_without_files_in_a_source_writes_nothing_there(source, bucket):
    collected.take(source, "de", "job-1", collected.new_files(source, "sw"))
    assert objects.list_objects(f"{bucket}/feedback/taken") == []


def test_what_was_taken_can_be_read_by_people(source, bucket):
    collected.take(source, "sw", "job-1", collected.new_files(source, "sw"))
    told = json.loads(objects.read_object(f"{bucket}/feedback/taken/language=sw/job-1.json"))
    assert names(told) == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize("source", ["s3://bucket/feedback", "collected:/folder", "collected:"])
def test_other_addresses_are_refused(source):
    with pytest.raises(ConfigError, match="no address of collected text"):
        collected.new_files(source, "sw")


def test_fetched_files_are_told_beside_their_copies(source, tmp_path, caplog):
    caplog.set_level("INFO")
    files, found = collected.fetch(["sample:sw", source], "sw", tmp_path)
    assert files[0] == "sample:sw"
    assert names(files[1:]) == ["a.parquet", "b.parquet"]
    assert all(str(tmp_path) in file for file in files[1:])
    assert list(found) == [source]
    assert f"sw pairs: {found[source][0]}, here {files[1]}" in caplog.text
