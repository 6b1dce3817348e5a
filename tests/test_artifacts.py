import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conlst.contract import artifacts
from conlst.contract.artifacts import (
    MANIFEST,
    Manifest,
    canonical_json,
    link_or_copy,
    publish,
    read_manifest,
    republish,
    sha256_of,
    verify,
)
from conlst.contract.errors import ArtifactError

# no deadline: the machine may be busy with a training
REPEATABLE = settings(deadline=None, derandomize=True)
ROOT = Path(__file__).parents[1]
FILES = {"config.json": b'{"a":1}', "weights.bin": bytes(range(256)) * 3, "deep/er/notes.txt": "été\n".encode(), "empty": b""}


def fill(folder: Path, files: dict[str, bytes] = FILES) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def make(folder: Path, files: dict[str, bytes] = FILES, **facts: Any) -> Manifest:
    with publish(folder, **{"kind": "model", **facts}) as staging:
        fill(staging, files)
    return read_manifest(folder)


def publish_and_fail(folder: Path, error: type[BaseException]) -> None:
    with publish(folder, kind="model") as staging:
        fill(staging, {"half": b"written"})
        raise error("stop")


def publish_link(folder: Path, target: str) -> None:
    with publish(folder, kind="model") as staging:
        fill(staging)
        (staging / "link").symlink_to(target)


def siblings(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if path != folder)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    make(folder, config={"seed": 1}, parents={"source": "ab"}, meta={"language": "sw"})
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a published folder's manifest."""
    raw = json.loads((folder / MANIFEST).read_text())
    change(raw)
    (folder / MANIFEST).write_text(json.dumps(raw))


class TestPublish:
    def test_the_manifest_says_all_of_the_folder(self, published: Path) -> None:
        manifest = verify(published, "model")
        assert {name: (entry.sha256, entry.size) for name, entry in manifest.files.items()} == {
            name: (hashlib.sha256(content).hexdigest(), len(content)) for name, content in FILES.items()
        }
        assert (manifest.kind, manifest.config, manifest.parents) == ("model", {"seed": 1}, {"source": "ab"})
        assert manifest.meta == {"language": "sw"}
        assert manifest == read_manifest(published, "model")
        assert {name: (published / name).read_bytes() for name in FILES} == FILES

    def test_parents_of_the_folder_are_made_and_nothing_stays_beside_it(self, tmp_path: Path) -> None:
        folder = tmp_path / "a" / "b" / "out"
        make(folder)
        assert siblings(folder) == []

    def test_the_name_appears_only_when_the_block_has_ended(self, tmp_path: Path) -> None:
        folder = tmp_path / "out"
        with publish(folder, kind="model") as staging:
            fill(staging)
            assert staging.parent == folder.parent  # a rename across file systems is no rename
            assert not folder.exists()
            with pytest.raises(ArtifactError, match="never published"):
                verify(staging)
        verify(folder)

    def test_the_manifest_is_written_after_every_other_byte(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[list[str]] = []
        write = artifacts._write_synced

        def spy(path: Path, text: str) -> None:
            seen.append(sorted(p.relative_to(path.parent).as_posix() for p in path.parent.rglob("*") if p.is_file()))
            assert not (tmp_path / "out").exists()
            write(path, text)

        monkeypatch.setattr(artifacts, "_write_synced", spy)
        make(tmp_path / "out")
        assert seen == [sorted(FILES)]

    def test_an_empty_folder_is_replaced(self, tmp_path: Path) -> None:
        # a pipeline creates the output folder before the component runs
        (tmp_path / "out").mkdir()
        make(tmp_path / "out")
        verify(tmp_path / "out")

    def test_a_manifest_of_the_block_is_not_believed(self, tmp_path: Path) -> None:
        with publish(tmp_path / "out", kind="model") as staging:
            fill(staging)
            (staging / MANIFEST).write_text('{"kind":"forged","files":{}}')
        assert verify(tmp_path / "out").files.keys() == FILES.keys()

    def test_a_manifest_deeper_down_is_a_file_like_any_other(self, tmp_path: Path) -> None:
        make(tmp_path / "out", {"a": b"1", f"inner/{MANIFEST}": b"2"})
        assert set(verify(tmp_path / "out").files) == {"a", f"inner/{MANIFEST}"}

    def test_a_folder_without_files_can_be_published(self, tmp_path: Path) -> None:
        make(tmp_path / "out", {})
        assert verify(tmp_path / "out").files == {}

    def test_new_content_replaces_the_old_whole(self, published: Path) -> None:
        make(published, {"other": b"new"})
        assert sorted(path.name for path in published.iterdir()) == [MANIFEST, "other"]
        verify(published)
        assert siblings(published) == []

    def test_what_killed_processes_left_of_this_name_is_cleared_away(
        self, published: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        left = [f".out.{'0' * 32}.partial", f".out.{'1' * 32}.old"]
        others = [f".out.b.{'0' * 32}.partial", f".other.{'0' * 32}.old", ".out.0.partial", "out.old"]
        for name in (*left, *others):
            (published.parent / name / "deep").mkdir(parents=True)
            # a link to an older file is not the age of the folder
            os.utime(published.parent / name, (1, 1))
        make(published)
        assert siblings(published) == sorted(left + others)

        now = time.time()
        monkeypatch.setattr(artifacts.time, "time", lambda: now + 25 * 3600)
        make(published)
        assert siblings(published) == sorted(others)
        verify(published)

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
    def test_an_exception_leaves_the_old_content(self, published: Path, error: type[BaseException]) -> None:
        before = verify(published)
        with pytest.raises(error):
            publish_and_fail(published, error)
        assert verify(published) == before
        assert siblings(published) == []

    def test_an_exception_leaves_an_absent_folder_absent(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError):
            publish_and_fail(tmp_path / "out", RuntimeError)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("target", ["empty", "deep", "nowhere", "/etc/hostname"])
    def test_links_cannot_be_published(self, published: Path, target: str) -> None:
        before = verify(published)
        with pytest.raises(ArtifactError, match="symbolic link"):
            publish_link(published, target)
        assert verify(published) == before

    def test_a_plain_file_in_the_way_is_an_error_before_the_work(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("precious")
        worked = False
        with pytest.raises(ArtifactError, match="out"), publish(tmp_path / "out", kind="model"):
            worked = True
        assert not worked
        assert (tmp_path / "out").read_text() == "precious"


class TestDigest:
    def test_same_content_same_digest(self, tmp_path: Path) -> None:
        facts: dict[str, Any] = {
            "config": {"b": 2, "a": [1, {"y": 1, "x": 2}]},
            "parents": {"q": "1", "p": "2"},
            "meta": {"n": 3},
        }
        first = make(tmp_path / "first", **facts)
        turned: dict[str, Any] = {
            "config": {"a": [1, {"x": 2, "y": 1}], "b": 2},
            "parents": {"p": "2", "q": "1"},
            "meta": {"n": 3},
        }
        with publish(tmp_path / "elsewhere" / "second", kind="model", **turned) as staging:
            for name in reversed(FILES):
                fill(staging, {name: FILES[name]})
                os.utime(staging / name, (1, 1))
        second = verify(tmp_path / "elsewhere" / "second")
        assert (tmp_path / "first" / MANIFEST).read_bytes() == (tmp_path / "elsewhere/second" / MANIFEST).read_bytes()
        assert first.digest == second.digest == hashlib.sha256((tmp_path / "first" / MANIFEST).read_bytes()).hexdigest()

    def test_a_retry_into_the_same_folder_gives_the_same_manifest(self, published: Path) -> None:
        before = (published / MANIFEST).read_bytes()
        again = make(published, config={"seed": 1}, parents={"source": "ab"}, meta={"language": "sw"})
        assert (published / MANIFEST).read_bytes() == before
        assert again == verify(published)

    def test_every_part_counts(self, tmp_path: Path) -> None:
        variants: list[tuple[dict[str, bytes], dict[str, Any]]] = [
            (FILES, {}),
            (FILES, {"kind": "onnx"}),
            (FILES, {"config": {"seed": 2}}),
            (FILES, {"parents": {"source": "cd"}}),
            (FILES, {"meta": {"language": "ur"}}),
            ({**FILES, "empty": b"\0"}, {}),
            ({**FILES, "more": b""}, {}),
            ({name: content for name, content in FILES.items() if name != "empty"}, {}),
            ({("renamed" if name == "empty" else name): content for name, content in FILES.items()}, {}),
        ]
        digests = [make(tmp_path / str(i), files, **facts).digest for i, (files, facts) in enumerate(variants)]
        assert len(set(digests)) == len(variants)

    def test_what_was_written_is_what_is_read(self, tmp_path: Path) -> None:
        made = make(tmp_path / "out", config={"bars": (0.1, 2e-5), "name": "tête", "none": None}, meta={"n": 10**12})
        assert Manifest.from_json(made.to_json(), "x") == made
        assert made.config == {"bars": [0.1, 2e-5], "name": "tête", "none": None}

    @REPEATABLE
    @given(st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False), max_size=5))
    def test_canonical_json_ignores_the_order_of_keys(self, value: dict[str, Any]) -> None:
        assert canonical_json(value) == canonical_json(dict(reversed(value.items())))
        assert json.loads(canonical_json(value)) == value

    def test_sha256_of_a_file_longer_than_a_block(self, tmp_path: Path) -> None:
        content = random.Random(0).randbytes(1_000_003)
        (tmp_path / "f").write_bytes(content)
        assert sha256_of(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def same_size(path: Path) -> None:
    path.write_bytes(bytes(byte ^ 255 for byte in path.read_bytes()))


def move(path: Path) -> None:
    path.rename(path.with_name(path.name + ".moved"))


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


class TestVerify:
    @pytest.mark.parametrize("name", [name for name, content in FILES.items() if content])
    @pytest.mark.parametrize("harm", [Path.unlink, truncate, append, same_size, move, become_a_folder])
    def test_harm_to_any_file_is_refused(self, published: Path, name: str, harm: Callable[[Path], None]) -> None:
        harm(published / name)
        with pytest.raises(ArtifactError) as caught:
            verify(published)
        assert str(published) in str(caught.value)

    @pytest.mark.parametrize("harm", [Path.unlink, append, move, become_a_folder])
    def test_harm_to_an_empty_file_is_refused(self, published: Path, harm: Callable[[Path], None]) -> None:
        harm(published / "empty")
        with pytest.raises(ArtifactError, match="empty"):
            verify(published)

    @pytest.mark.parametrize("name", ["extra", "deep/extra", ".hidden", "deep/er/.hidden", f"deep/{MANIFEST}"])
    def test_an_added_file_is_refused_by_name(self, published: Path, name: str) -> None:
        (published / name).write_bytes(b"")
        with pytest.raises(ArtifactError, match=f"holds {name}, which its manifest does not list"):
            verify(published)

    def test_two_files_that_changed_names_are_refused(self, tmp_path: Path) -> None:
        make(tmp_path / "out", {"a": b"one", "b": b"two"})
        (tmp_path / "out" / "a").rename(tmp_path / "out" / "c")
        (tmp_path / "out" / "b").rename(tmp_path / "out" / "a")
        (tmp_path / "out" / "c").rename(tmp_path / "out" / "b")
        with pytest.raises(ArtifactError, match="is not the file that was published"):
            verify(tmp_path / "out")

    def test_two_folders_that_changed_manifests_are_refused(self, tmp_path: Path) -> None:
        make(tmp_path / "one", {"a": b"one"})
        make(tmp_path / "two", {"a": b"two"})
        shutil.copyfile(tmp_path / "one" / MANIFEST, tmp_path / "two" / MANIFEST)
        with pytest.raises(ArtifactError):
            verify(tmp_path / "two")

    @pytest.mark.parametrize("target", ["config.json", "deep", "nowhere", "/etc/hostname"])
    def test_a_link_inside_is_refused(self, published: Path, target: str) -> None:
        (published / "link").symlink_to(target)
        with pytest.raises(ArtifactError, match="symbolic link"):
            verify(published)

    def test_a_link_in_place_of_a_file_is_refused_even_with_the_right_bytes(self, published: Path) -> None:
        (published / "weights.bin").rename(published.parent / "weights.bin")
        (published / "weights.bin").symlink_to(published.parent / "weights.bin")
        with pytest.raises(ArtifactError, match=r"weights\.bin is a symbolic link"):
            verify(published)

    def test_a_linked_manifest_is_refused(self, published: Path) -> None:
        (published / MANIFEST).rename(published.parent / "kept.json")
        (published / MANIFEST).symlink_to(published.parent / "kept.json")
        with pytest.raises(ArtifactError, match="symbolic link"):
            verify(published)

    def test_a_link_to_the_folder_may_be_read(self, published: Path) -> None:
        # what stands at the end of it is checked like any other folder
        link = published.parent / "latest"
        link.symlink_to(published)
        assert verify(link) == verify(published)
        append(published / "weights.bin")
        with pytest.raises(ArtifactError):
            verify(link)

    def test_another_kind_is_refused(self, published: Path) -> None:
        for read in (verify, read_manifest):
            with pytest.raises(ArtifactError, match="is of kind 'model', expected 'onnx'"):
                read(published, "onnx")

    def test_no_folder_and_no_manifest_are_refused(self, tmp_path: Path, published: Path) -> None:
        (published / MANIFEST).unlink()
        for folder in (published, tmp_path / "absent"):
            with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
                verify(folder)

    @pytest.mark.parametrize("case", ["the folder is a file", "the manifest is a folder"])
    def test_what_is_no_artifact_at_all_is_refused(self, tmp_path: Path, case: str) -> None:
        folder = tmp_path / "out"
        if case == "the folder is a file":
            folder.write_text("")
        else:
            (folder / MANIFEST).mkdir(parents=True)
        with pytest.raises(ArtifactError, match="out"):
            verify(folder)


class TestManifest:
    PATHS = (
        "../out/config.json",
        "deep/../config.json",
        "deep/..",
        "..",
        ".",
        "",
        "/etc/hostname",
        "//etc/hostname",
        "./config.json",
        "deep//er",
        "deep/",
        "deep/./er",
        "..\\config.json",
        "deep\\er",
        "C:\\windows",
    )

    @pytest.mark.parametrize("path", PATHS)
    def test_a_path_that_leaves_the_folder_is_refused(self, published: Path, path: str) -> None:
        # even with the right hash and size of what stands there
        rewrite(published, lambda raw: raw["files"].update({path: raw["files"].pop("config.json")}))
        for read in (verify, read_manifest):
            with pytest.raises(ArtifactError, match="leaves its folder") as caught:
                read(published)
            assert repr(path) in str(caught.value)

    @REPEATABLE
    @given(st.lists(st.sampled_from(["..", ".", "", "deep", "er", "a b", "\\", "\0", "~", "%2e%2e", "\u2024\u2024"]), min_size=1))
    def test_an_accepted_path_stays_inside(self, parts: list[str]) -> None:
        text = json.dumps({"kind": "model", "files": {"/".join(parts): {"sha256": "", "size": 0}}})
        try:
            manifest = Manifest.from_json(text, "x")
        except ArtifactError:
            return
        (name,) = manifest.files
        assert os.path.normpath(os.path.join("/folder", name)) == f"/folder/{name}"  # noqa: PTH118
        assert "\\" not in name

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "null",
            "[]",
            "3",
            '"text"',
            "{}",
            '{"kind":"model"}',
            '{"files":{}}',
            '{"kind":"model","files":[]}',
            '{"kind":"model","files":{"a":"0"}}',
            '{"kind":"model","files":{"a":{"sha256":"0"}}}',
            '{"kind":"model","files":{"a":{"sha256":"0","size":0,"mode":7}}}',
            '{"kind":"model","files":{},"when":"today"}',
        ],
    )
    def test_what_is_no_manifest_is_refused(self, published: Path, text: str) -> None:
        (published / MANIFEST).write_text(text)
        with pytest.raises(ArtifactError, match="is not a conlst manifest") as caught:
            verify(published)
        assert str(published / MANIFEST) in str(caught.value)

    @pytest.mark.parametrize("schema", [0, 2, "1", None])
    def test_another_schema_is_refused(self, published: Path, schema: object) -> None:
        rewrite(published, lambda raw: raw.update(schema=schema))
        with pytest.raises(ArtifactError, match="schema"):
            verify(published)

    @pytest.mark.parametrize("change", [{"size": 0}, {"size": None}, {"sha256": "0" * 64}, {"sha256": None}])
    def test_a_wrong_entry_is_refused(self, published: Path, change: dict[str, Any]) -> None:
        rewrite(published, lambda raw: raw["files"]["weights.bin"].update(change))
        with pytest.raises(ArtifactError, match=r"weights\.bin"):
            verify(published)

    @pytest.mark.parametrize("content", [b"\xff\xfe{\0}\0", b"\x80", b'{"kind":"\xe9"}'])
    def test_bytes_that_are_no_text_are_refused(self, published: Path, content: bytes) -> None:
        (published / MANIFEST).write_bytes(content)
        with pytest.raises(ArtifactError, match="is not a conlst manifest"):
            verify(published)


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published folder whose users put back what they change."""
    folder = tmp_path_factory.mktemp("steady") / "out"
    make(folder, config={"seed": 1}, parents={"source": "ab"}, meta={"language": "sw"})
    return folder


def flipped(content: bytes, bit: int) -> bytes:
    byte = bit // 8 % len(content)
    return content[:byte] + bytes([content[byte] ^ 1 << bit % 8]) + content[byte + 1 :]


class TestFlippedBits:
    @settings(REPEATABLE, max_examples=60)
    @given(st.sampled_from([name for name, content in FILES.items() if content]), st.integers(0, 10_000))
    def test_in_a_file_is_refused(self, steady: Path, name: str, bit: int) -> None:
        content = (steady / name).read_bytes()
        try:
            (steady / name).write_bytes(flipped(content, bit))
            with pytest.raises(ArtifactError, match="is not the file that was published"):
                verify(steady)
        finally:
            (steady / name).write_bytes(content)

    @settings(REPEATABLE, max_examples=150)
    @given(st.integers(0, 10_000), st.integers(0, 6))
    def test_in_the_manifest_is_refused_or_makes_another_digest(self, steady: Path, byte: int, bit: int) -> None:
        content, before = (steady / MANIFEST).read_bytes(), read_manifest(steady).digest
        try:
            (steady / MANIFEST).write_bytes(flipped(content, 8 * byte + bit))
            try:
                digest = verify(steady).digest
            except ArtifactError:
                return
            assert digest != before
        finally:
            (steady / MANIFEST).write_bytes(content)


PUBLISHER = """
import itertools, sys
from pathlib import Path
from conlst.contract.artifacts import publish

for version in itertools.count(int(sys.argv[2])):
    with publish(Path(sys.argv[1]), kind="model", meta={"version": version}) as staging:
        (staging / "deep").mkdir()
        for number in range(4):
            (staging / "deep" / f"{number}.txt").write_text(f"{version}\\n" * 500)
    print(version, flush=True)
"""


def version_of(folder: Path) -> int | None:
    """The version that a reader sees, all of it; ``None`` for a clear refusal."""
    if not folder.exists():
        # nothing stands between a complete folder and none
        with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
            verify(folder, "model")
        return None
    manifest = verify(folder, "model")
    version = int(manifest.meta["version"])
    assert len(manifest.files) == 4
    assert {(folder / name).read_text() for name in manifest.files} == {f"{version}\n" * 500}
    return version


def test_killed_at_random_moments_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    folder, chance, announced = tmp_path / "out", random.Random(7), 0
    for _ in range(15):
        command = [sys.executable, "-c", PUBLISHER, str(folder), str(announced + 1)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"{announced + 1}\n"
            time.sleep(chance.uniform(0, 0.03))
            process.kill()
            announced += 1 + len(process.stdout.read().split())
        assert process.returncode == -signal.SIGKILL
        # a version may be in place before it was announced, never after
        assert version_of(folder) in (None, announced, announced + 1)


# Forks for every line of artifacts.py and of rmtree that a publication passes, and kills itself there.
KILL_EVERYWHERE = """
import json, os, shutil, signal, sys
from pathlib import Path
from conlst.contract import artifacts
from conlst.contract.artifacts import publish, republish
from conlst.contract.errors import ArtifactError

home = Path(sys.argv[1])
folder = home / "out"
watched = {artifacts.__file__, shutil.__file__}
os.fsync = lambda descriptor: None  # a kill is no power cut, and a busy disk would make this slow

def fill(staging, text):
    for name in "abc":
        (staging / name).write_text(text)

def write(text, folder=folder):
    with publish(folder, kind="model", meta={"text": text}) as staging:
        fill(staging, text)

def die_at(count):
    left = count
    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename not in watched:
            return None
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)

def seen():
    try:
        manifest = artifacts.verify(folder)
    except ArtifactError as error:
        return "absent" if "has no manifest.json" in str(error) and not folder.exists() else f"broken: {error}"
    content = {(folder / name).read_text() for name in manifest.files}
    return content.pop() if content == {manifest.meta["text"]} and len(manifest.files) == 3 else f"mixed: {content}"

outcomes = []
while True:
    for path in home.iterdir():
        shutil.rmtree(path)
    if sys.argv[2] == "old":
        write("old")
    write("new", home / "source")
    child = os.fork()
    if child == 0:
        die_at(len(outcomes))
        write("new") if sys.argv[3] == "publish" else republish(home / "source", folder)
        sys.settrace(None)
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    after_kill = seen()
    write("retried")
    outcomes.append((killed, after_kill, seen()))
    if not killed:
        break
print(json.dumps(outcomes))
"""


@pytest.mark.parametrize(("before", "way"), [("old", "publish"), ("absent", "publish"), ("old", "republish")])
def test_killed_at_any_line_a_folder_is_whole_or_absent_and_a_retry_mends_it(tmp_path: Path, before: str, way: str) -> None:
    command = [sys.executable, "-c", KILL_EVERYWHERE, str(tmp_path), before, way]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    outcomes = json.loads(run.stdout)
    counts = Counter(after_kill for _, after_kill, _ in outcomes)
    assert set(counts) == {before, "absent", "new"}
    assert [after_kill for killed, after_kill, _ in outcomes if not killed] == ["new"]
    # the order of events: old, for a moment none, new; never back
    stages = [after_kill for _, after_kill, _ in outcomes]
    assert stages == sorted(stages, key=["old", "absent", "new"].index)
    if before == "old":
        assert counts["absent"] <= 5  # between two renames
    assert {retried for *_, retried in outcomes} == {"retried"}


class TestRepublish:
    def test_gives_the_same_content_and_digest_at_no_cost(self, published: Path) -> None:
        target = published.parent / "a" / "second"
        republish(published, target)
        assert verify(target) == verify(published)
        assert (target / MANIFEST).read_bytes() == (published / MANIFEST).read_bytes()
        assert (target / "weights.bin").samefile(published / "weights.bin")
        assert siblings(target) == []

    def test_replaces_what_was_there_and_leaves_the_first_alone(self, published: Path) -> None:
        target = published.parent / "second"
        make(target, {"other": b"old"})
        republish(published, target)
        assert not (target / "other").exists()
        assert verify(target) == verify(published)
        shutil.rmtree(target)
        verify(published)

    def test_a_failure_leaves_the_old_content_and_nothing_beside_it(self, published: Path) -> None:
        with pytest.raises(OSError, match="absent"):
            republish(published.parent / "absent", published)
        verify(published)
        assert siblings(published) == []


class TestLinkOrCopy:
    def test_links_where_it_can(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"weights")
        link_or_copy(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "b").read_bytes() == b"weights"
        assert (tmp_path / "b").samefile(tmp_path / "a")

    def test_copies_elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refuse)
        (tmp_path / "a").write_bytes(b"weights")
        link_or_copy(tmp_path / "a", tmp_path / "b")
        (tmp_path / "a").write_bytes(b"other")
        assert (tmp_path / "b").read_bytes() == b"weights"

    def test_a_missing_source_is_an_error_and_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            link_or_copy(tmp_path / "a", tmp_path / "b")
        assert not (tmp_path / "b").exists()

    def test_linked_files_are_published_and_the_first_folder_outlives_the_second(self, published: Path) -> None:
        other = published.parent / "other"
        with publish(other, kind="model") as staging:
            link_or_copy(published / "weights.bin", staging / "weights.bin")
        assert verify(other).files["weights.bin"] == verify(published).files["weights.bin"]
        shutil.rmtree(other)
        verify(published)

    def test_a_target_that_exists_never_changes_a_published_file(self, published: Path) -> None:
        (published.parent / "source").write_bytes(b"other")
        link_or_copy(published / "weights.bin", published.parent / "target")
        try:
            link_or_copy(published.parent / "source", published.parent / "target")
        except FileExistsError:
            pass  # refusing is as good as replacing the name
        else:
            assert (published.parent / "target").read_bytes() == b"other"
        verify(published)
