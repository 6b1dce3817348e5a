"""The pipeline: one source model, calibrated and self-trained for each language or for all together, then for each language
evaluated, exported, registered, promoted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.calibrate import calibrate
from components.due import due
from components.evaluate import evaluate, evaluate_zero_shot
from components.export import export
from components.ingest import ingest, ingest_pools
from components.nothing import anything, nothing_due
from components.promote import promote
from components.register import register
from components.self_train import self_train
from components.source_model import source_model
from components.summarize import summarize
from conlst.contract.config import Adapt, Config
from conlst.contract.errors import ConfigError

Place = Callable[[dsl.PipelineTask], dsl.PipelineTask]
Given = Mapping[str, object]

_STAGES = {"calibrate": calibrate, "selftrain": self_train}


@dataclass(frozen=True)
class Placement:
    """Where the tasks run.

    Attributes:
        train: given every task that wants a GPU.
        serve: given every other task.
        at_once: languages adapted at the same time.
    """

    train: Place
    serve: Place
    at_once: int


def check_languages(config: Config) -> None:
    """Refuse a configuration that the pipeline would do nothing for.

    Raises:
        ConfigError: if it names no languages.
    """
    if not config.languages:
        raise ConfigError(f"{config.name} names no languages; set languages in the configuration")


def adaptation(plan: Adapt, place: Placement) -> BaseComponent:
    """The pipeline with its tasks placed; ``plan`` is that of the configurations that it can be run with."""

    @dsl.pipeline(name="conlst", description="Take an English NLI model into languages without labels, and release it there.")
    def conlst(config: str, languages: list, store: str) -> str:
        """Adapt, evaluate and release.

        Args:
            config: a configuration, as JSON.
            languages: codes of the target languages.
            store: s3://bucket/prefix for the released models.

        Returns:
            The gate's decisions as JSON.
        """
        to_adapt = place.serve(due(config=config, languages=languages, compiled_for=plan.model_dump(mode="json")))
        to_adapt.set_caching_options(False)
        # without new text nothing is trained, and the run is a success
        with dsl.If(place.serve(anything(languages=to_adapt.output)).output == True):  # noqa: E712  kfp builds the condition
            summary = _adapt_all(plan, place, config, to_adapt.output, store)
        with dsl.Else():
            nothing = place.serve(nothing_due())
        return dsl.OneOf(summary.outputs["Output"], nothing.output)

    return conlst


def _adapt_all(plan: Adapt, place: Placement, config: str, languages: object, store: str) -> dsl.PipelineTask:
    run = {"config": config, "job": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
    english = _ingest(place, {**run, "language": "en"}, "source")
    development = _ingest(place, {**run, "language": "en"}, "source_dev")
    source = place.train(source_model(**run, pairs=english.output, dev=development.output)).set_display_name("source model")
    source.set_caching_options(False)

    if plan.joint:
        # what stands at an address may have changed since, here as in _ingest
        pool = place.serve(ingest_pools(**run, languages=languages)).set_caching_options(False)
        models = _train(plan, place, {**run, "language": pool.outputs["Output"]}, source, pool, english)
        with dsl.ParallelFor(languages, parallelism=place.at_once) as language:
            decision = _release(place, {**run, "language": language}, source, pool, models, development, store)
    else:
        with dsl.ParallelFor(languages, parallelism=place.at_once) as language:
            here = {**run, "language": language}
            pool = _ingest(place, here, "pool")
            models = _train(plan, place, here, source, pool, english)
            decision = _release(place, here, source, pool, models, development, store)
    return place.serve(summarize(**run, decisions=dsl.Collected(decision.output)))


def _train(
    plan: Adapt, place: Placement, here: Given, source: dsl.PipelineTask, pool: dsl.PipelineTask, english: dsl.PipelineTask
) -> list[dsl.PipelineTask]:
    """The stages, each on the model of the one before."""
    models = [source]
    for stage in plan.stages:
        trained = place.train(_STAGES[stage](**here, model=models[-1].output, pool=pool.outputs["pairs"], source=english.output))
        models.append(trained.set_caching_options(False))
    return models[1:]


def _release(
    place: Placement,
    here: Given,
    source: dsl.PipelineTask,
    pool: dsl.PipelineTask,
    models: Sequence[dsl.PipelineTask],
    development: dsl.PipelineTask,
    store: str,
) -> dsl.PipelineTask:
    """What the models are worth in one language; the last of them is exported, registered and judged by the gate."""
    test = _ingest(place, here, "test")
    judged = {**here, "test": test.output, "development": development.output}
    zero_shot = place.train(evaluate_zero_shot(**judged, model=source.output))
    before = zero_shot.outputs["evaluation"]

    adapted = models[-1]
    for calibrated in models[:-1]:
        place.train(evaluate(**judged, before=before, stage="calibrated", model=calibrated.output))
    evaluated = place.train(evaluate(**judged, before=before, stage="adapted", model=adapted.output))

    measured = evaluated.outputs["evaluation"]
    served = place.serve(export(**judged, model=adapted.output, pairs=pool.outputs["pairs"], evaluation=measured))
    released = place.serve(
        register(**here, store=store, served=served.output, evaluation=measured, zero_shot=before, pool=pool.outputs["pairs"])
    )
    released.set_caching_options(False)
    decision = place.serve(promote(**here, version=released.output))
    return decision.set_caching_options(False)


def _ingest(place: Placement, here: Given, role: str) -> dsl.PipelineTask:
    task = place.serve(ingest(**here, role=role))
    # what stands at an address may have changed since
    return task.set_display_name(f"ingest {role}").set_caching_options(False)
