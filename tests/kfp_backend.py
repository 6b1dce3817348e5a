"""A local server with the API shapes of kfp-server-api 2.17, for the calls that conlst makes of a Kubeflow Pipelines backend.

No backend can run without a cluster, so this shows what is asked of one and how its answers are read, and not that one agrees.
"""

import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

_API = "/apis/v2beta1"


class KfpBackend:
    """Attributes:
    token: that every request must bear, if one is set.
    runs, schedules: as they were asked for, by id.
    """

    def __init__(self, token: str = "") -> None:
        self.token = token
        self.page = 2
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.schedules: dict[str, dict[str, Any]] = {}

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        match [method, *path.removeprefix(_API).strip("/").split("/")]:
            case ["GET", "healthz"]:
                return 200, {"multi_user": True}
            case ["GET", "experiments"]:
                wanted = json.loads(query["filter"][0])["predicates"][0]["stringValue"] if "filter" in query else None
                found = [e for e in self.experiments.values() if wanted in (None, e["display_name"])]
                return 200, {"experiments": found, "total_size": len(found)}
            case ["POST", "experiments"]:
                return 200, self._kept(self.experiments, body, "experiment_id")
            case ["POST", "runs"]:
                return 200, self._kept(self.runs, {**body, "state": "PENDING"}, "run_id")
            case ["POST", "recurringruns"]:
                status = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[body["mode"]]
                return 200, self._kept(self.schedules, {**body, "status": status}, "recurring_run_id")
            case ["GET", "recurringruns"]:
                first = int(query.get("page_token", [""])[0] or 0)
                found = [s for s in self.schedules.values() if s["experiment_id"] == query["experiment_id"][0]]
                more = {"next_page_token": str(first + self.page)} if first + self.page < len(found) else {}
                return 200, {"recurringRuns": found[first : first + self.page], "total_size": len(found), **more}
            case ["POST", "recurringruns", named] if match := re.fullmatch(r"(.+):(enable|disable)", named):
                self.schedules[match[1]]["status"] = f"{match[2].upper()}D"
                return 200, {}
            case ["DELETE", "recurringruns", named]:
                del self.schedules[named]
                return 200, {}
        return 404, {"error": f"{method} {path} is not known", "code": 5}

    @staticmethod
    def _kept(kept: dict[str, dict[str, Any]], body: dict[str, Any], key: str) -> dict[str, Any]:
        made = {**body, key: str(uuid.uuid4()), "created_at": "2026-01-02T03:04:05Z"}
        kept[made[key]] = made
        return made


@contextmanager
def serve(backend: KfpBackend) -> Iterator[str]:
    """Yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            split = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            if backend.token and self.headers.get("Authorization") != f"Bearer {backend.token}":
                status, content = 401, {"error": "Request header error: there is no user identity header."}
            else:
                status, content = backend.answer(self.command, split.path, parse_qs(split.query), body)
            sent = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_DELETE = _answer

        def log_message(self, *_: Any) -> None:
            """Tests have their own output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
