"""The page at ``/``: a few lines of HTML that load nothing from anywhere."""

from html import escape

from serving.schema import Catalogue

HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"}

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>conlst</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem; color: #222 }}
pre {{ background: #f4f4f4; padding: 1rem; overflow-x: auto }}
td, th {{ text-align: left; padding-right: 1.5rem }}
</style>
<h1>conlst</h1>
<p>Does the hypothesis follow from the premise, contradict it, or neither?</p>
<p><strong>{state}</strong></p>
<table><tr><th>language</th><th>model</th><th>version</th><th>digest</th></tr>
{rows}</table>
<pre>curl -H 'content-type: application/json' -d '{{
  "premise": "…", "hypothesis": "…", "language": "{language}"
}}' http://…/predict</pre>
<p><a href="openapi.json">openapi.json</a> · <a href="models">models</a> · <a href="metrics">metrics</a></p>
"""


def render_page(catalogue: Catalogue) -> str:
    rows = [
        (model.language, model.name, "–" if model.version is None else str(model.version), model.digest[:12])
        for model in catalogue.models
    ]
    return _PAGE.format(
        state="Ready." if catalogue.ready else f"Not ready: {escape(catalogue.reason or '')}",
        rows="\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows),
        language=escape(rows[0][0]) if rows else "sw",
    )
