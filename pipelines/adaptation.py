"""The pipeline: one source model, then for each language calibrate, self-train, evaluate, export, register, promote."""

from collections.abc import Callable
from dataclasses import dataclass

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.calibrate import calibrate
from components.due import due
from components.evaluate import evaluate, evaluate_zero_shot
from components.export import export
from components.ingest import ingest
from components.nothing import anything, nothing_due
from components.promote import promote
from components.register import register
from components.self_train import self_train
from components.source_model import source_model
from components.summarize import summarize

Place = Callable[[dsl.PipelineTask], dsl.PipelineTask]


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


def adaptation(place: Placement) -> BaseComponent:
    """The pipeline with its tasks placed."""

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
        to_adapt = place.serve(due(config=config, languages=languages)).set_caching_options(False)
        # without new text nothing is trained, and the run is a success
        with dsl.If(place.serve(anything(languages=to_adapt.output)).output == True):  # noqa: E712  kfp builds the condition
            summary = _adapt_all(place, config, to_adapt.output, store)
        with dsl.Else():
            nothing = place.serve(nothing_due())
        return dsl.OneOf(summary.outputs["Output"], nothing.output)

    return conlst


def _adapt_all(place: Placement, config: str, languages: object, store: str) -> dsl.PipelineTask:
    job = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    english = _ingest(place, config, "source", "en")
    development = _ingest(place, config, "source_dev", "en")
    source = place.train(source_model(config=config, job=job, pairs=english.output, dev=development.output)).set_display_name(
        "source model"
    )
    source.set_caching_options(False)

    with dsl.ParallelFor(languages, parallelism=place.at_once) as language:
        pool = _ingest(place, config, "pool", language)
        test = _ingest(place, config, "test", language)
        here = {"config": config, "job": job, "language": language}
        judged = {"test": test.output, "development": development.output}
        zero_shot = place.train(evaluate_zero_shot(**here, model=source.output, **judged))

        training = {**here, "pool": pool.output, "source": english.output}
        calibrated = place.train(calibrate(**training, model=source.output)).set_caching_options(False)
        adapted = place.train(self_train(**training, model=calibrated.output)).set_caching_options(False)

        comparison = {**here, **judged, "before": zero_shot.outputs["evaluation"]}
        place.train(evaluate(**comparison, stage="calibrated", model=calibrated.output))
        evaluated = place.train(evaluate(**comparison, stage="adapted", model=adapted.output))

        measured = evaluated.outputs["evaluation"]
        served = place.serve(export(**here, **judged, model=adapted.output, pairs=pool.output, evaluation=measured))
        released = place.serve(
            register(
                **here,
                store=store,
                served=served.output,
                evaluation=measured,
                zero_shot=zero_shot.outputs["evaluation"],
                pool=pool.output,
            )
        ).set_caching_options(False)
        decision = place.serve(promote(config=config, language=language, version=released.output))
        decision.set_caching_options(False)

    return place.serve(summarize(config=config, job=job, decisions=dsl.Collected(decision.output)))


def _ingest(place: Placement, config: str, role: str, language: object) -> dsl.PipelineTask:
    task = place.serve(ingest(config=config, role=role, language=language))
    # what stands at an address may have changed since
    return task.set_display_name(f"ingest {role}").set_caching_options(False)
