"""What the run came to, over all languages."""

from kfp import dsl

from components.base import component


@component
def summarize(config: str, job: str, decisions: list, table: dsl.Output[dsl.Markdown]) -> str:
    """Collect the gate's decisions into one table, and end the run of the whole pipeline in MLflow.

    Returns:
        The decisions as one JSON list.
    """
    import json
    from pathlib import Path

    from components.record import EXPERIMENT
    from conlst.contract.config import config_from_json
    from conlst.platform import tracking

    rows = [json.loads(decision) for decision in decisions]
    lines = ["| language | version | promoted | why |", "|---|---|---|---|"]
    lines += [
        f"| {r['language']} | {r['version']} | {'yes' if r['promoted'] else 'no'} | {'; '.join(r['reasons'])} |" for r in rows
    ]
    checked = config_from_json(config)
    params = {"config": checked.name, "config_digest": checked.digest, "languages": ",".join(r["language"] for r in rows)}
    with tracking.run(job, experiment=EXPERIMENT, folder=Path(f"{table.path}.untracked"), key=job, params=params) as run:
        Path(table.path).write_text("\n".join(lines) + "\n")
        run.metrics({f"promoted/{row['language']}": float(row["promoted"]) for row in rows})
        run.artifact(Path(table.path))
    return json.dumps(rows)
