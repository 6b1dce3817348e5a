"""The gate: does the challenger become champion?"""

from components.base import component


@component
def promote(config: str, job: str, language: str, version: int) -> str:
    """Let the gate decide on a version; refusal is the default.

    Returns:
        JSON with language, version, whether it was promoted, why, and the metrics that decided.
    """
    import json

    from components.record import part_of
    from conlst.contract.config import config_from_json
    from conlst.platform import registry

    with part_of(job):
        decision = registry.promote(language, version, config_from_json(config).gate)
        result = {"language": language, "version": version, "promoted": decision.promote, "reasons": list(decision.reasons)}
        return json.dumps({**result, "metrics": registry.version(language, version).metrics})
