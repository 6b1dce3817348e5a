"""What the run came to, over all languages."""

from kfp import dsl

from components.base import component


@component
def summarize(decisions: list, table: dsl.Output[dsl.Markdown]) -> str:
    """Collect the gate's decisions into one table.

    Returns:
        The decisions as one JSON list.
    """
    import json
    from pathlib import Path

    rows = [json.loads(decision) for decision in decisions]
    lines = ["| language | version | promoted | why |", "|---|---|---|---|"]
    lines += [
        f"| {r['language']} | {r['version']} | {'yes' if r['promoted'] else 'no'} | {'; '.join(r['reasons'])} |" for r in rows
    ]
    Path(table.path).write_text("\n".join(lines) + "\n")
    return json.dumps(rows)
