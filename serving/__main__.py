"""``python -m serving --host 127.0.0.1 --port 3000``: becomes ``bentoml serve`` with the settings that it needs."""

import argparse
import os
import sys
from ipaddress import ip_address
from pathlib import Path

from serving.ending import REQUEST_SECONDS
from serving.keys import CHOOSE

# longer than load balancers keep theirs (60 s mostly): a connection must not be closed while a request is on its way
_KEEP_ALIVE_SECONDS = 75


def command(host: str, port: int) -> list[str]:
    """The ``bentoml serve`` command line.

    Args:
        host: an IP address; BentoML takes no names.
    """
    return [
        *(sys.executable, "-m", "bentoml", "serve", "serving.service:Nli"),
        *("--host", host, "--port", str(port)),
        # wherever it is started, this very package is served; the worker goes back to where that was
        *("--working-dir", str(Path(__file__).resolve().parents[1])),
        *("--timeout-keep-alive", str(_KEEP_ALIVE_SECONDS)),
        *("--timeout-graceful-shutdown", str(REQUEST_SECONDS)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="serving", description="Serve the promoted models. CONLST_* variables set the rest.")
    parser.add_argument("--host", default="127.0.0.1", help="IP address to listen on")
    parser.add_argument("--port", type=int, default=3000)
    arguments = parser.parse_args()
    try:
        address = ip_address(arguments.host)
    except ValueError:
        parser.error(f"--host is {arguments.host!r}, expected an IP address")
    if not os.environ.get("CONLST_AUTH", "").strip():
        # who names keys wants them asked for
        keys_file = os.environ.get("CONLST_KEYS_FILE", "").strip()
        if not keys_file and not address.is_loopback:
            parser.error(f"{address} can be reached by others; {CHOOSE}")
        os.environ["CONLST_AUTH"] = "keys" if keys_file else "none"
    # BentoML reads this before it imports the service, and accepts no other spelling of yes
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    # replaces this process, so that a signal reaches BentoML itself
    os.execv(sys.executable, command(arguments.host, arguments.port))


if __name__ == "__main__":
    main()
