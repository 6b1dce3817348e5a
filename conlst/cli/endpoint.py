"""Answers: an endpoint that gives them, and questions to it or to a model folder."""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from conlst.cli.command import Commands, Result
from conlst.cli.inputs import read_text


def add_to(commands: Commands) -> None:
    sub = commands.add_parser("serve", help="serve champions from the registry, or given folders", allow_abbrev=False)
    sub.set_defaults(command=serve)
    sub.add_argument("--model", action="append", metavar="LANGUAGE=DIR", help="serve this folder; default: the champions")
    sub.add_argument("--language", action="append", help="serve only this champion (repeatable)")
    sub.add_argument("--host", default="127.0.0.1")
    sub.add_argument("--port", type=int, default=3000)

    sub = commands.add_parser(
        "predict",
        help="answer a pair with a model folder, or pairs and files of them with an endpoint",
        description="Answer one pair with a model folder, or one pair or a file of any size with an endpoint. A file's answers "
        "come in its order, a row each; a pair that cannot be answered says why in the column error. A run that was interrupted "
        "goes on where it stopped when it is started again. The API key is that of --key-file, or of the variable CONLST_API_KEY",
        allow_abbrev=False,
    )
    sub.set_defaults(command=predict, misused=sub.error)
    who = sub.add_mutually_exclusive_group(required=True)
    who.add_argument("--model", metavar="DIR", help="an exported or a trained model folder")
    who.add_argument("--url", help="an endpoint, for example http://localhost:3000")
    sub.add_argument("--premise")
    sub.add_argument("--hypothesis")
    sub.add_argument(
        "--file", type=Path, metavar="FILE", help=".tsv[.gz] or .jsonl[.gz] with premise and hypothesis, as columns or keys"
    )
    sub.add_argument(
        "--out", type=Path, metavar="FILE", help="answers as .tsv or .jsonl; default: beside FILE, NAME.predictions.tsv or .jsonl"
    )
    sub.add_argument("--language", help="of the pairs; default: the endpoint detects it")
    sub.add_argument("--truncate", action="store_true", help="cut pairs that are too long for the model instead of refusing them")
    sub.add_argument("--key-file", type=Path, metavar="FILE", help="holds the API key")


def serve(options: argparse.Namespace) -> NoReturn:
    environment = dict(os.environ)
    if options.model:
        environment["CONLST_MODELS"] = ",".join(options.model)
    if options.language:
        environment["CONLST_LANGUAGES"] = ",".join(options.language)
    command = [sys.executable, "-m", "serving", "--host", options.host, "--port", str(options.port)]
    # the server takes this process' place, and so its signals
    os.execve(sys.executable, command, environment)


def predict(options: argparse.Namespace) -> Result:
    if options.file and (options.premise or options.hypothesis):
        options.misused("give --premise and --hypothesis, or --file, not both")
    if not options.file and None in (options.premise, options.hypothesis):
        options.misused("give --premise and --hypothesis, or a --file of pairs")
    if options.out and not options.file:
        options.misused("--out keeps the answers to a --file")
    if options.url:
        return _predict_at_endpoint(options)
    asked = {
        "--file": options.file,
        "--language": options.language,
        "--truncate": options.truncate,
        "--key-file": options.key_file,
    }
    if wrong := [name for name, value in asked.items() if value]:
        options.misused(f"{', '.join(wrong)} is for an endpoint: `conlst serve --model LANGUAGE=DIR`, then --url")
    return _predict_by_folder(Path(options.model), (options.premise, options.hypothesis))


def _predict_by_folder(folder: Path, pair: tuple[str, str]) -> Result:
    from conlst.contract.artifacts import read_manifest
    from conlst.contract.labels import NAMES

    manifest = read_manifest(folder)
    if manifest.kind == "onnx":
        from conlst.runtime.onnx import Predictor

        predictor = Predictor(folder)
        probabilities = predictor.probabilities(predictor.logits([pair]))[0].tolist()
    else:
        from conlst.stages.folders import predict_pairs

        probabilities = predict_pairs(folder, [pair])[0]
    best = max(range(len(NAMES)), key=probabilities.__getitem__)
    return {
        "label": NAMES[best],
        "probabilities": dict(zip(NAMES, probabilities, strict=True)),
        "language": manifest.meta.get("language"),
        "digest": manifest.digest,
    }


def _predict_at_endpoint(options: argparse.Namespace) -> Result:
    from conlst.client import AsyncClient, Client

    key = read_text(options.key_file, "--key-file") if options.key_file else None
    if options.file:
        from conlst.client.bulk import default_out, predict_file

        out = options.out or default_out(options.file)
        try:
            return predict_file(AsyncClient(options.url, key), options.file, out, options.language, options.truncate)
        except KeyboardInterrupt:
            # what is kept and how to go on was told
            raise SystemExit(130) from None
    with Client(options.url, key) as client:
        pair = (options.premise, options.hypothesis)
        answer = client.predict([pair], language=options.language, truncate=options.truncate)[0]
    return {
        "label": answer.label,
        "probabilities": dict(answer.probabilities),
        "language": answer.language,
        "digest": answer.model.digest,
        "model": answer.model.name,
        "version": answer.model.version,
    }
