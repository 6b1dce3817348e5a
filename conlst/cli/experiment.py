"""The experiments of a matrix, and the document that tells them."""

import argparse
from pathlib import Path

from conlst.cli.command import Commands, Result, positive
from conlst.cli.inputs import read_text
from conlst.contract.errors import ConfigError


def add_to(commands: Commands) -> None:
    sub = commands.add_parser("bench", help="run an experiment: systems, languages and seeds of a matrix", allow_abbrev=False)
    sub.set_defaults(command=bench)
    sub.add_argument("benchmark", choices=["xnli"])
    sub.add_argument("--matrix", type=Path, required=True, metavar="FILE", help="what to run, for example benchmarks/xnli.yaml")
    sub.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="what {data} stands for in the matrix")
    sub.add_argument("--work", type=Path, default=Path("runs/bench"), metavar="DIR", help="where models are kept while it runs")
    sub.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/xnli"), metavar="DIR", help="one JSON a cell; those there stay"
    )
    sub.add_argument("--system", action="extend", nargs="+", default=[], metavar="NAME", help="run only these; default: all")
    sub.add_argument("--jobs", type=positive, default=1, metavar="N", help="processes at a time, each with its share of the CPUs")
    sub.add_argument("--subset", type=int, metavar="N", help="N random pairs of every split, to see that the matrix runs")
    sub.add_argument("--document", type=Path, metavar="FILE", help="Markdown whose tables are made anew, with figures beside it")
    sub.add_argument("--tables-only", action="store_true", help="run nothing, only make tables and figures")


def bench(options: argparse.Namespace) -> Result:
    from conlst.bench.cell import read_cells
    from conlst.bench.figures import draw
    from conlst.bench.matrix import read_matrix
    from conlst.bench.run import run_matrix
    from conlst.bench.tables import blocks, fill

    matrix = read_matrix(options.matrix)
    result: Result = {"results": str(options.out)}
    if options.document:
        # a document that cannot be filled is told before hours of training
        fill(read_text(options.document, "--document"), dict.fromkeys(blocks([], matrix.groups, matrix.development), ""))
    elif options.tables_only:
        raise ConfigError("--tables-only makes the tables of a document; name it with --document")
    if not options.tables_only:
        result |= run_matrix(matrix, options.data, options.work, options.out, options.subset, options.system, options.jobs)
    if options.document:
        cells = read_cells(options.out)
        tables = blocks(cells, matrix.groups, matrix.development)
        options.document.write_text(fill(read_text(options.document, "--document"), tables), encoding="utf-8")
        figures = draw(cells, matrix.groups, matrix.development, options.document.parent / "figures")
        result |= {"document": str(options.document), "figures": [str(figure) for figure in figures]}
    return result
