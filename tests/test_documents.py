"""What the documents tell people to type is something that the command line takes, and what they point to is there."""

import re
import shlex
from pathlib import Path

import pytest

from benchmark import benchmark
from conlst.bench.cell import read_cells
from conlst.bench.matrix import read_matrix
from conlst.bench.tables import blocks, fill
from conlst.cli import command_line

serving_tables = benchmark("serving_tables")

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# a command in a block by itself, or within a line
COMMAND = re.compile(r"(?:^ {4}|`)(conlst [a-z][^`\n]*)", re.MULTILINE)
LINK = re.compile(r"\]\((?!http)([^)#\s]+)[^)]*\)")
REFILL = "conlst bench xnli --matrix benchmarks/xnli.yaml --tables-only --document docs/results.md"
TARGET = re.compile(r"`make ([a-z-]+)`|^ {4}make ([a-z-]+)", re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    joined = {path.name: re.sub(r" *\\\n *", " ", path.read_text()) for path in DOCUMENTS}
    return [(name, found[1]) for name, text in joined.items() for found in COMMAND.finditer(text) if "NAME" not in found[1]]


def words(command: str) -> list[str]:
    return shlex.split(re.sub(r"<[^>]*>", "PLACE", command), comments=True)[1:]


# in a sentence a command may stand by its name alone
WHOLE = [entry for entry in commands() if any(word.startswith("--") for word in words(entry[1]))]


@pytest.mark.parametrize(("document", "command"), WHOLE)
def test_the_command_line_takes_it(document: str, command: str) -> None:
    try:
        command_line().parse_args(words(command))
    except SystemExit:
        pytest.fail(f"{document} has {command!r}")


@pytest.mark.parametrize(("document", "command"), commands())
def test_it_is_a_command(document: str, command: str) -> None:
    name = words(command)[0]
    assert re.search(rf"^    {name}\b", command_line().format_help(), re.MULTILINE), f"{document}: {command}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    missing = [link for link in LINK.findall(path.read_text()) if not (path.parent / link).exists()]
    assert not missing


def test_makes_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for path in DOCUMENTS for names in TARGET.findall(path.read_text()) for name in names if name}
    assert named
    assert named <= targets


def test_the_tables_of_the_results_are_those_of_the_cells() -> None:
    options = command_line().parse_args(words(REFILL))
    matrix = read_matrix(ROOT / options.matrix)
    page = (ROOT / options.document).read_text(encoding="utf-8")
    tables = blocks(read_cells(ROOT / options.out), matrix.groups, matrix.development)
    if fill(page, tables) != page:
        stale = ", ".join(name for name, table in tables.items() if table.strip() not in page)
        pytest.fail(f"{options.document} is not what {options.out} gives ({stale}); run .venv/bin/{REFILL}", pytrace=False)


def test_the_tables_of_the_performance_are_those_of_the_benchmarks() -> None:
    page = serving_tables.DOCUMENT.read_text(encoding="utf-8")
    if serving_tables.filled(page) != page:
        pytest.fail(
            "docs/performance.md is not what benchmarks/results gives; run python benchmarks/serving_tables.py", pytrace=False
        )
