"""Which languages have something to adapt on."""

from components.base import component


@component
def due(config: str, languages: list, compiled_for: dict) -> list:
    """Leave out the languages whose collected text is too little to adapt on; a pool that is not collected is always due.

    Nothing of it is recorded: MLflow has no run of the pipeline yet that a failure could leave running, and gets none if no
    language is due.

    Args:
        compiled_for: ``config.adapt`` as it was when the pipeline was compiled, which made its tasks what they are.

    Returns:
        The languages to adapt; none is a run with nothing to do, and no failure.
    """
    import logging
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from conlst.contract.config import config_from_json
    from conlst.contract.errors import ConfigError
    from conlst.contract.logs import set_up_logging
    from conlst.data.ingestion import count_pairs
    from conlst.platform.collected import fetch, is_collected

    set_up_logging()
    checked = config_from_json(config)
    if (asked := checked.adapt.model_dump(mode="json")) != compiled_for:
        raise ConfigError(
            f"adapt is {asked}, but this pipeline was compiled for {compiled_for}; compile it for this configuration"
        )
    chosen = []
    for language in languages:
        sources = checked.data.sources("pool", language)
        if not all(map(is_collected, sources)):
            chosen.append(language)
            continue
        with TemporaryDirectory() as folder:
            files, _ = fetch(sources, language, Path(folder))
            pairs = count_pairs([Path(file) for file in files])
        logging.getLogger("conlst.due").info("%s: %d new pairs in %d files", language, pairs, len(files))
        if pairs >= checked.collect.min_pairs:
            chosen.append(language)
    return chosen
