"""The files of the page at /ui: how they are answered, and that they lead nowhere else. No browser is needed."""

import http.client
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest
import yaml
from starlette.applications import Starlette

from serving.page import ui_routes
from ui_endpoint import running

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "serving" / "ui"
FILES = sorted(path.name for path in FOLDER.iterdir())
PARTS = [name for name in FILES if name != "index.html"]
PATHS = {"/ui": FOLDER / "index.html"} | {f"/ui/{name}": FOLDER / name for name in PARTS}


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    with running(Starlette(routes=ui_routes())) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
def test_every_file_is_answered_with_its_type_and_the_strict_headers(server: httpx.Client, path: str) -> None:
    response = server.get(path)
    assert response.status_code == 200
    assert response.content == PATHS[path].read_bytes()
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    assert response.headers["content-type"].partition(";")[0] == types[PATHS[path].suffix]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-cache"
    policy = dict(rule.strip().split(" ", 1) for rule in response.headers["content-security-policy"].split(";"))
    assert policy.pop("default-src") == "'none'"
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert set(policy.values()) == {"'self'", "'none'"}
    assert {name for name, value in policy.items() if value == "'self'"} == {
        "script-src",
        "style-src",
        "img-src",
        "connect-src",
    }


def test_the_root_leads_to_the_page_by_a_relative_address(server: httpx.Client) -> None:
    response = server.get("/")
    # relative, so that it stays right under a proxy's path
    assert (response.status_code, response.headers["location"]) == (307, "ui")
    assert server.get("/", follow_redirects=True).url.path == "/ui"
    assert server.get("/ui/", follow_redirects=True).url.path == "/ui"


def test_what_is_known_is_not_sent_again(server: httpx.Client) -> None:
    first = server.get("/ui/style.css")
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = server.get("/ui/style.css", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    for other in ('"other"', tag[:-2] + '"', tag.strip('"')):
        assert server.get("/ui/style.css", headers={"If-None-Match": other}).status_code == 200
    assert len({server.get(path).headers["etag"] for path in PATHS}) == len(PATHS)


def test_head_and_wrong_methods(server: httpx.Client) -> None:
    head = server.head("/ui")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == (FOLDER / "index.html").stat().st_size
    assert server.post("/ui", json={}).status_code == 405
    assert server.put("/ui/app.js", content=b"x").status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/ui/../page.py",
        "/ui/%2e%2e/page.py",
        "/ui/..%2fpage.py",
        "/ui/%2e%2e%2fpage.py",
        "/ui/..%5cpage.py",
        "/ui/./../../serving/page.py",
        "/ui//etc/passwd",
        "/ui/%2fetc%2fpasswd",
        "/ui/app.js%00.html",
        "/ui/app.js/",
        "/ui/APP.JS",
        "/ui/index.html",
        "/ui/nothing.js",
    ],
)
def test_no_path_leads_out_of_the_folder(server: httpx.Client, path: str) -> None:
    # http.client sends the path as it stands, httpx would tidy it
    connection = http.client.HTTPConnection(server.base_url.host, server.base_url.port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    # a closing slash is taken away by a redirect to the file itself
    assert response.status == (307 if path == "/ui/app.js/" else 404)
    assert b"import" not in body
    assert b"root:" not in body


def test_the_page_refers_to_its_own_files_only() -> None:
    index = (FOLDER / "index.html").read_text()
    own = {f"ui/{name}" for name in PARTS}
    api = {"openapi.json", "metrics"}
    addresses = set(re.findall(r"""\b(?:href|src|action|data|poster|srcset)\s*=\s*["']([^"']*)""", index))
    assert {address for address in addresses if not address.startswith("#")} <= own | api
    assert "ui/app.js" in addresses
    assert not re.search(r"<(style|iframe|object|embed|base|form[^>]* action)\b|\son\w+\s*=|\sstyle\s*=|javascript:", index)
    assert re.search(r"<script(?![^>]*\bsrc=)", index) is None
    for name in FILES:
        text = (FOLDER / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|[\"'(]//|@import|url\(", text), name


def test_every_script_is_imported_and_every_import_is_there() -> None:
    imports = {name: re.findall(r'from "\./([^"]+)"', (FOLDER / name).read_text()) for name in FILES if name.endswith(".js")}
    reached, new = set(), {"app.js"}
    while new:
        reached |= new
        new = {target for name in new for target in imports[name]} - reached
    assert reached == set(imports)


def test_scripts_make_no_markup_and_keep_no_texts() -> None:
    for name in FILES:
        if not name.endswith(".js"):
            continue
        text = (FOLDER / name).read_text()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|\beval\b|new Function",
            text,
        ), name
        assert not re.search(r"localStorage|indexedDB|document\.cookie|caches\b|serviceWorker|sendBeacon|WebSocket", text), name
        # the key alone, and for this tab alone
        assert ("sessionStorage" in text) == (name == "key.js"), name


def test_no_field_is_remembered_or_read_by_the_browser() -> None:
    index = (FOLDER / "index.html").read_text()
    for form in re.findall(r"<form[^>]*>", index):
        assert 'autocomplete="off"' in form
    # a browser's spelling service may send what is written elsewhere
    for field in re.findall(r"<(?:textarea|input)[^>]*>", index):
        assert "checkbox" in field or 'spellcheck="false"' in field


def test_the_wheel_and_the_bento_carry_the_page() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"].get("serving", [])
    bento = yaml.safe_load((ROOT / "serving" / "bentofile.yaml").read_text())["include"]
    for name in FILES:
        assert any(fnmatch(f"ui/{name}", pattern) for pattern in wheel), name
        assert any(fnmatch(f"serving/ui/{name}", pattern) for pattern in bento), name
