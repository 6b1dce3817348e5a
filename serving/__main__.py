"""``python -m serving --host 127.0.0.1 --port 3000``: becomes ``bentoml serve`` with the settings that it needs."""

import argparse
import os
import sys
from pathlib import Path

GRACE_SECONDS = 30


def command(host: str, port: int) -> list[str]:
    """The ``bentoml serve`` command line.

    Args:
        host: an IP address; BentoML takes no names.
    """
    return [
        *(sys.executable, "-m", "bentoml", "serve", "serving.service:Nli"),
        *("--host", host, "--port", str(port)),
        # wherever it is started, this very package is served
        *("--working-dir", str(Path(__file__).resolve().parents[1])),
        *("--timeout-graceful-shutdown", str(GRACE_SECONDS)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="serving", description="Serve the promoted models. CONLST_* variables set the rest.")
    parser.add_argument("--host", default="127.0.0.1", help="IP address to listen on")
    parser.add_argument("--port", type=int, default=3000)
    arguments = parser.parse_args()
    # BentoML reads this before it imports the service, and accepts no other spelling of yes
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    # replaces this process, so that a signal reaches BentoML itself
    os.execv(sys.executable, command(arguments.host, arguments.port))


if __name__ == "__main__":
    main()
