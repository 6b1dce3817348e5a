"""Answers to what is asked: from the bytes of a body to a response, or the error that says why there is none."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.responses import Response

from conlst.contract.labels import NAMES
from conlst.runtime.tokens import Pair
from serving.choice import Choice, Chooser
from serving.compute import Part, Timing, encode_parts, score_parts
from serving.drift import Drift
from serving.errors import ApiError, Problems
from serving.feedback import Feedback
from serving.metrics import Metrics
from serving.models import Served
from serving.question import Question, read_question, read_zero_shot
from serving.scheduler import Logits, Scheduler
from serving.schema import Answer, ModelName, Prediction, Refused, RefusedDetail, Result, Source, ZeroShotAnswer
from serving.settings import Settings
from serving.zero_shot import ranked, scores

Probabilities = NDArray[np.float64]


@dataclass(frozen=True)
class _Asked:
    """Pairs to compute for items of a request.

    Attributes:
        kind: what an item is called, for messages.
        items: the index of the item that each pair belongs to.
        labels: where the second texts of an item's pairs are labels, how many: they are never cut.
    """

    kind: str
    items: Sequence[int]
    truncate: bool
    problems: Problems
    labels: int | None = None


class Answers:
    """Both kinds of questions. Deadlines are on the clock of ``time.monotonic``."""

    def __init__(
        self, settings: Settings, scheduler: Scheduler, chooser: Chooser, feedback: Feedback, drift: Drift, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._scheduler = scheduler
        self._chooser = chooser
        self._feedback = feedback
        self._drift = drift
        self._metrics = metrics

    async def predict(self, body: bytes, deadline: float) -> Response:
        """Answer POST /predict.

        Raises:
            ApiError: for the request as a whole, or for a bad pair unless a partial answer will do.
        """
        question = read_question(body, self._settings)
        pairs, problems, timing = question.pairs, question.problems, Timing()
        texts = {index: pair for index, pair in enumerate(pairs) if index not in problems.found}
        choices = await self._choose(texts, question.language, "pair", problems, timing)
        asked = _Asked("pair", range(len(pairs)), question.truncate, problems)
        logits, long = await self._logits(pairs, asked, choices, deadline, timing)
        cut = long | question.cut
        answered = {index: choice for index, choice in choices.items() if index not in problems.found}
        probabilities = np.empty(logits.shape, np.float64)
        for served, places in _by_model(answered):
            probabilities[places] = served.predictor.probabilities(logits[places])
            # the evaluation that they are compared with was of the model's own language
            own = [place for place in places if answered[place].source != "fallback"]
            self._drift.observe(served, probabilities[own])
        predictions: list[Prediction | Refused] = []
        for index in range(len(pairs)):
            if problem := problems.found.get(index):
                predictions.append(_refused(problem))
                continue
            told = _prediction(answered[index], probabilities[index], index in cut)
            if question.logits:
                told.logits = _by_label(logits[index])
            self._metrics.predictions.labels(told.language, told.label).inc()
            predictions.append(told)
        answer = Answer(predictions=predictions, **_about(list(answered.values()), question.language))
        # after the answer has gone out
        keep = BackgroundTask(self._keep, question, answered, probabilities) if question.feedback else None
        return self._response(answer, answered, timing, keep)

    async def zero_shot(self, body: bytes, deadline: float) -> Response:
        """Answer POST /zero-shot.

        Raises:
            ApiError: for the request as a whole or a bad label, or for a bad text unless a partial answer will do.
        """
        question = read_zero_shot(body, self._settings)
        count, width, problems, timing = len(question.texts), len(question.labels), question.problems, Timing()
        texts = {index: (text,) for index, text in enumerate(question.texts) if index not in problems.found}
        choices = await self._choose(texts, question.language, "text", problems, timing)
        pairs = [(text, hypothesis) for text in question.texts for hypothesis in question.hypotheses]
        asked = _Asked("text", [index // width for index in range(len(pairs))], question.truncate, problems, width)
        logits, long = await self._logits(pairs, asked, choices, deadline, timing)
        cut = long | question.cut
        answered = {index: choice for index, choice in choices.items() if index not in problems.found}
        results: list[Result | Refused] = []
        for index, row in enumerate(scores(logits.reshape(count, width, len(NAMES)), question.multi_label)):
            if problem := problems.found.get(index):
                results.append(_refused(problem))
                continue
            labels, falling = ranked(question.labels, row)
            results.append(Result(labels=labels, scores=falling, language=answered[index].language, truncated=index in cut))
        answer = ZeroShotAnswer(results=results, **_about(list(answered.values()), question.language))
        return self._response(answer, answered, timing, None)

    async def _choose(
        self, texts: Mapping[int, Sequence[str]], language: str | None, kind: str, problems: Problems, timing: Timing
    ) -> dict[int, Choice]:
        begin = time.monotonic()
        chosen = await self._chooser.choose(texts, language, kind)
        if language is None:
            timing.detect = time.monotonic() - begin
        problems.add({index: choice for index, choice in chosen.items() if isinstance(choice, ApiError)})
        return {index: choice for index, choice in chosen.items() if isinstance(choice, Choice)}

    async def _logits(
        self, pairs: Sequence[Pair], asked: _Asked, choices: Mapping[int, Choice], deadline: float, timing: Timing
    ) -> tuple[Logits, set[int]]:
        """``[n, 3]``, without meaning for the pairs of refused items, and the items that are too long for their models."""
        models = {place: choices[item].served for place, item in enumerate(asked.items) if item in choices}
        parts = await encode_parts(self._scheduler, pairs, models, deadline, timing, only_first=asked.labels is not None)
        if asked.labels is not None:
            _check_labels(parts, asked.labels)
        long = {asked.items[place]: (tokens, part.served) for part in parts for place, tokens in part.long.items()}
        if not asked.truncate:
            asked.problems.add({item: _too_long(asked.kind, item, *found) for item, found in long.items()})
            parts = [part.without({place for place in part.places if asked.items[place] in long}) for part in parts]
        logits = np.zeros((len(pairs), len(NAMES)), np.float32)
        for computed in await score_parts(self._scheduler, parts, deadline, timing):
            logits[computed.part.places] = computed.logits
            asked.problems.add({asked.items[place]: _broken(asked.kind, asked.items[place]) for place in computed.failed})
        return logits, set(long)

    def _response(
        self, answer: BaseModel, answered: Mapping[int, Choice], timing: Timing, after: BackgroundTask | None
    ) -> Response:
        self._metrics.chosen(answered.values())
        self._metrics.timed(timing)
        # what was not asked for is left out, rather than null
        content = answer.model_dump_json(exclude_unset=True)
        return Response(content, headers={"Server-Timing": timing.header()}, media_type="application/json", background=after)

    async def _keep(self, question: Question, answered: Mapping[int, Choice], probabilities: Probabilities) -> None:
        # by the texts' own language: a fallback answers texts of others, which must not be taken for its own
        together: dict[tuple[int, str], list[int]] = {}
        for index, choice in answered.items():
            together.setdefault((id(choice.served), choice.own), []).append(index)
        sampled = self._feedback.takes(question.pairs)
        for (_, own), places in together.items():
            pairs = [question.pairs[place] for place in places]
            self._feedback.offer(answered[places[0]].served, own, pairs, probabilities[places], sampled)


def name_of(served: Served) -> ModelName:
    source, predictor = served.source, served.predictor
    return ModelName(name=source.name, version=source.version, digest=predictor.digest, precision=predictor.precision)


def _about(answered: Sequence[Choice], language: str | None) -> dict[str, Any]:
    """What an answer tells of its models and languages. ``answered`` is empty if everything was refused."""
    models = {choice.language: name_of(choice.served) for choice in answered}
    source: Source = "detected" if language is None else "given"
    if any(choice.source == "fallback" for choice in answered):
        source = "fallback"
    one = next(iter(models)) if len(models) == 1 else None
    return {"language": one, "language_source": source, "model": models[one] if one is not None else None, "models": models}


def _by_model(answered: Mapping[int, Choice]) -> Iterable[tuple[Served, list[int]]]:
    places: dict[int, list[int]] = {}
    for index, choice in answered.items():
        places.setdefault(id(choice.served), []).append(index)
    return ((answered[of_one[0]].served, of_one) for of_one in places.values())


def _prediction(choice: Choice, probabilities: Probabilities, truncated: bool) -> Prediction:
    label = NAMES[int(probabilities.argmax())]
    return Prediction(label=label, probabilities=_by_label(probabilities), language=choice.language, truncated=truncated)


def _refused(problem: ApiError) -> Refused:
    return Refused(error=RefusedDetail(type=problem.kind, message=problem.message))


def _by_label(values: Probabilities | Logits) -> dict[str, float]:
    return dict(zip(NAMES, values.tolist(), strict=True))


def _check_labels(parts: Sequence[Part], labels: int) -> None:
    """Refuse a label that fills a model by itself, and with it the request, as for all else that is wrong with a label."""
    for part in parts:
        for place in part.uncut:
            message = (
                f"label {place % labels} leaves no room for a text among the {part.served.predictor.max_length} tokens that the "
                f"model of {part.served.source.language} reads: shorten it or the template"
            )
            raise ApiError(422, "too_long", message)


def _too_long(kind: str, index: int, tokens: int, served: Served) -> ApiError:
    message = (
        f'{kind} {index} has {tokens} tokens, the model reads {served.predictor.max_length}: shorten it, or send "truncate": true'
    )
    return ApiError(422, "too_long", message, index=index)


def _broken(kind: str, index: int) -> ApiError:
    return ApiError(500, "internal", f"the model cannot compute {kind} {index}; the server's log has the reason", index=index)
