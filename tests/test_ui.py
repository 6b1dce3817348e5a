"""The page at /ui in a real Chromium: what people see, hear and do there. Its files are tests/test_page.py's affair."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright
from starlette.applications import Starlette
from starlette.types import ASGIApp

from conlst.contract.artifacts import read_manifest
from conlst.contract.labels import NAMES
from machine import needs
from served import expected as likely
from served import serve
from serving.errors import ApiError, Kind
from test_drift import REFERENCE, with_card
from tiny_onnx import PAIRS, tiny_onnx_folder
from ui_endpoint import DIGEST, DRIFT, Endpoint, model, plain_model, running

CHROMIUM = shutil.which("chromium")
SECTIONS = ("pairs", "zero-shot", "models", "drift")
CHECKS = (Path(__file__).parent / "ui_checks.js").read_text().partition("\n")[2].rstrip().rstrip(";")
LONG = "watu " * 120

pytestmark = [pytest.mark.slow]
in_chromium = needs(CHROMIUM is not None, "chromium (apt-get install chromium)")


@dataclass
class Visitor:
    """Someone at the page, and what the browser had to ask and to complain of."""

    page: Page
    url: str
    endpoint: Endpoint
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    # complaints that the test brings about itself
    expected: str = "(?!)"

    def arrive(self, section: str = "", state: str = "ready") -> Page:
        self.page.goto(f"{self.url}/ui{section and '#' + section}")
        expect(self.page.locator("#state")).to_have_attribute("data-kind", state)
        return self.page

    def write_pair(self, premise: str, hypothesis: str, number: int = 1) -> None:
        pair = self.page.get_by_role("group", name=f"Pair {number}", exact=True)
        pair.get_by_label("Premise").fill(premise)
        pair.get_by_label("Hypothesis").fill(hypothesis)

    def predict(self) -> None:
        self.page.get_by_role("button", name="Predict").click()

    def answer(self, number: int = 1) -> Locator:
        return self.page.get_by_role("group", name=f"Answer to pair {number}")


Visit = Callable[..., Visitor]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Opens pages on an endpoint of their own."""
    endpoint = Endpoint()
    with visits(browser, Starlette(routes=endpoint.routes()), endpoint) as come:
        yield come


@contextmanager
def visits(browser: Browser, app: ASGIApp, endpoint: Endpoint) -> Iterator[Visit]:
    """Opens pages on an application; afterwards none may have complained or asked anyone else for anything."""
    visitors: list[Visitor] = []
    with running(app) as url:

        def come(**looks: Any) -> Visitor:
            context = browser.new_context(**{"locale": "en-GB", "timezone_id": "UTC", **looks})
            page = context.new_page()
            page.set_default_timeout(15_000)
            visitor = Visitor(page, url, endpoint)
            page.on("request", lambda request: visitor.requests.append(request.url))
            page.on("console", lambda message: _note(visitor, message))
            page.on("pageerror", lambda error: visitor.complaints.append(str(error)))
            visitors.append(visitor)
            return visitor

        yield come
        for visitor in visitors:
            visitor.page.context.close()
    for visitor in visitors:
        assert [complaint for complaint in visitor.complaints if not re.search(visitor.expected, complaint)] == []
        assert [address for address in visitor.requests if not address.startswith(f"{url}/")] == []


def _note(visitor: Visitor, message: ConsoleMessage) -> None:
    if message.type in ("error", "warning"):
        visitor.complaints.append(message.text)


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def measure(page: Page, what: str) -> Any:
    return page.evaluate(f"{CHECKS}.{what}()")


def focused(page: Page) -> str:
    return page.evaluate("document.activeElement.id || document.activeElement.textContent")


def bars(place: Locator) -> list[tuple[str, float, str, float]]:
    """Name, value, spoken value and drawn share of each bar, from the top."""
    expect(place.get_by_role("meter").first).to_be_visible()
    return [
        (
            meter.evaluate("bar => document.getElementById(bar.getAttribute('aria-labelledby')).textContent"),
            float(meter.get_attribute("aria-valuenow") or "nan"),
            meter.get_attribute("aria-valuetext") or "",
            meter.evaluate("bar => bar.firstElementChild.offsetWidth / bar.offsetWidth"),
        )
        for meter in place.get_by_role("meter").all()
    ]


@in_chromium
def test_a_pair_by_keyboard_alone(visit: Visit) -> None:
    visitor = visit(reduced_motion="reduce")
    page = visitor.arrive()
    press(page, "Tab")
    assert focused(page) == "Skip to the content"
    expect(page.get_by_text("Skip to the content")).to_be_in_viewport()
    press(page, "Enter", "Tab")
    assert focused(page) == "premise-1"
    page.keyboard.type("Watu wawili wanacheza")
    press(page, "Tab")
    page.keyboard.type("Watu wanacheza nje")
    press(page, "Control+Enter")

    expect(visitor.answer()).to_contain_text("Entailment70.3 %")
    expect(visitor.answer()).to_contain_text("The hypothesis follows from the premise.")
    expect(visitor.answer()).to_contain_text("Swahili, detected")
    shown = bars(visitor.answer())
    assert [bar[:3] for bar in shown] == [
        ("Entailment", 0.7031, "70.3 %"),
        ("Neutral", 0.2129, "21.3 %"),
        ("Contradiction", 0.084, "8.4 %"),
    ]
    assert [bar[3] for bar in shown] == pytest.approx([0.7031, 0.2129, 0.084], abs=0.01)
    about = page.locator("#pairs-about")
    expect(about).to_contain_text("nli-sw, version 4")
    expect(about).to_contain_text("int8")
    expect(about).to_contain_text(DIGEST[:12])
    expect(about).to_contain_text("queue 0.2 ms")
    expect(about).to_contain_text("tokenisation 0.6 ms")
    expect(about).to_contain_text("inference 8.1 ms")
    # said aloud, and the focus stays where it was
    expect(page.locator("#pairs-said")).to_have_text("1 pair answered. Pair 1: entailment, 70.3 %.")
    assert focused(page) == "hypothesis-1"
    (question,) = [question for question in visitor.endpoint.asked if question]
    assert question == {
        "pairs": [{"premise": "Watu wawili wanacheza", "hypothesis": "Watu wanacheza nje"}],
        "truncate": False,
        "partial": True,
    }


@in_chromium
def test_pairs_are_added_and_removed_by_keyboard(visit: Visit) -> None:
    page = visit().arrive()
    page.get_by_role("button", name="Add a pair").focus()
    press(page, "Enter")
    assert focused(page) == "premise-2"
    page.keyboard.type("ya pili")
    page.get_by_role("button", name="Add a pair").press("Space")
    assert page.locator("legend").all_text_contents() == ["Pair 1", "Pair 2", "Pair 3"]
    page.get_by_role("button", name="Remove pair 1").press("Enter")
    assert page.locator("legend").all_text_contents() == ["Pair 1", "Pair 2"]
    expect(page.get_by_role("group", name="Pair 1", exact=True).get_by_label("Premise")).to_have_value("ya pili")
    assert focused(page) == "premise-2"
    page.get_by_role("button", name="Remove pair 2").press("Enter")
    # the last one stays
    expect(page.get_by_role("button", name=re.compile("^Remove pair"))).to_have_count(0)


@in_chromium
def test_a_chosen_language_and_a_fallback(visit: Visit) -> None:
    visitor = visit()
    page = visitor.arrive()
    language = page.locator("#pairs").get_by_label("Language")
    assert language.locator("option").all_text_contents() == [
        "Detect automatically",
        "Swahili (sw)",
        "French (fr)",
        "Urdu (ur)",
    ]
    expect(page.locator("#pairs-language-hint")).to_have_text("Other languages are answered by the French model.")
    visitor.write_pair("Hello", "Hi")
    visitor.predict()
    expect(visitor.answer()).to_contain_text("French, the fallback, as no served language was recognised")
    language.select_option("ur")
    expect(visitor.answer()).to_contain_text("Changed since this answer.")
    visitor.predict()
    expect(visitor.answer()).to_contain_text("Urdu, as chosen")
    expect(visitor.answer()).not_to_contain_text("Changed")
    expect(page.locator("#pairs-about")).to_contain_text("nli-ur")
    assert visitor.endpoint.asked[-1]["language"] == "ur"


@in_chromium
def test_a_pair_that_is_too_long_says_so_at_its_place_and_the_others_are_answered(visit: Visit) -> None:
    visitor = visit()
    page = visitor.arrive()
    visitor.write_pair("Watu wawili", "Watu")
    page.get_by_role("button", name="Add a pair").click()
    visitor.write_pair("Watu wawili", LONG, 2)
    visitor.predict()
    expect(visitor.answer(1)).to_contain_text("Entailment")
    pair = page.get_by_role("group", name="Pair 2", exact=True)
    expect(pair).to_contain_text(
        "This pair has 431 tokens, the model reads 128: shorten it, or tick “Cut pairs that are too long”."
    )
    hypothesis = pair.get_by_label("Hypothesis")
    expect(hypothesis).to_have_attribute("aria-invalid", "true")
    expect(hypothesis).to_have_accessible_description(re.compile("431 tokens"))
    expect(page.get_by_role("group", name="Pair 1", exact=True).get_by_label("Hypothesis")).not_to_have_attribute(
        "aria-invalid", "true"
    )
    assert focused(page) == "premise-2"
    expect(page.locator("#pairs-said")).to_have_text("1 pair answered. Pair 1: entailment, 70.3 %. Pair 2: not answered.")
    page.get_by_label("Cut pairs that are too long").check()
    visitor.predict()
    expect(visitor.answer(2)).to_contain_text("Entailment")
    expect(visitor.answer(2)).to_contain_text("The pair was cut to what the model reads.")
    expect(pair).not_to_contain_text("431")


@in_chromium
def test_empty_fields_are_named_and_nothing_is_asked(visit: Visit) -> None:
    visitor = visit()
    page = visitor.arrive()
    page.get_by_label("Premise").fill("Watu")
    visitor.predict()
    hypothesis = page.get_by_label("Hypothesis")
    expect(hypothesis).to_have_accessible_description("Write a hypothesis.")
    expect(hypothesis).to_be_focused()
    expect(page.get_by_text("Write a premise.")).to_have_count(0)
    assert not any(visitor.endpoint.asked)
    page.keyboard.type("W")
    expect(page.get_by_text("Write a hypothesis.")).to_have_count(0)


@in_chromium
def test_errors_of_the_whole_request_stand_where_they_belong(visit: Visit) -> None:
    visitor = visit()
    visitor.expected = "Failed to load resource.*(404|422|429|502|503)"
    page = visitor.arrive()
    visitor.write_pair("Watu", "Mtu")

    def refuse(status: int, kind: Kind, message: str, index: int | None = None, **headers: str) -> None:
        visitor.endpoint.broken = ApiError(status, kind, message, index=index, headers=headers)
        visitor.predict()

    refuse(429, "busy", "too many requests wait", **{"Retry-After": "2"})
    expect(page.locator("#pairs-error")).to_have_text("Too many requests wait. Try again in 2 s.")
    refuse(404, "unknown_language", "no model answers for 'xx'; see /models")
    expect(page.locator("#pairs").get_by_label("Language")).to_have_accessible_description(
        re.compile("No model answers for 'xx'")
    )
    expect(page.locator("#pairs-error")).to_be_hidden()
    refuse(422, "too_long", "pair 0: the hypothesis has 5000 characters, at most 4000 are read", 0)
    expect(page.get_by_label("Hypothesis")).to_have_accessible_description(
        "The hypothesis has 5000 characters, at most 4000 are read."
    )
    expect(page.get_by_label("Premise")).to_have_accessible_description("")
    refuse(503, "not_ready", "loading nli-sw")
    expect(page.locator("#pairs-error")).to_have_text("Loading nli-sw.")
    # what a proxy answers in the endpoint's place
    page.route("**/predict", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>", content_type="text/html"))
    visitor.predict()
    expect(page.locator("#pairs-error")).to_have_text("The server answered 502 without words of its own.")


@in_chromium
def test_an_edited_question_marks_its_answer_as_old(visit: Visit) -> None:
    visitor = visit()
    page = visitor.arrive()
    visitor.write_pair("Watu wawili", "Watu")
    visitor.predict()
    expect(visitor.answer()).to_contain_text("Entailment")
    page.get_by_label("Premise").press("End")
    page.keyboard.type(" wengi")
    expect(visitor.answer().get_by_text("Changed since this answer.")).to_have_count(1)
    visitor.predict()
    expect(visitor.answer().get_by_text("Changed since this answer.")).to_have_count(0)


@in_chromium
def test_the_example_fills_the_fields_in_the_chosen_language(visit: Visit) -> None:
    visitor = visit()
    page = visitor.arrive()
    page.locator("#pairs").get_by_label("Language").select_option("ur")
    page.locator("#pairs").get_by_role("button", name="Try an example").click()
    assert page.locator("legend").count() == 3
    premise = page.get_by_role("group", name="Pair 1", exact=True).get_by_label("Premise")
    expect(premise).to_have_value(re.compile("فٹ بال"))
    assert premise.evaluate("field => getComputedStyle(field).direction") == "rtl"
    assert focused(page) == "Predict"


def written_pairs(page: Page) -> list[tuple[str, str]]:
    """Premise and hypothesis of each pair, from the top."""
    texts = [field.input_value() for field in page.locator("#pairs-list textarea").all()]
    return list(zip(texts[::2], texts[1::2], strict=True))


@in_chromium
def test_the_example_leaves_the_pairs_that_a_person_wrote(visit: Visit) -> None:
    visitor = visit()
    page = visitor.arrive()
    page.locator("#pairs").get_by_label("Language").select_option("sw")
    example = page.locator("#pairs").get_by_role("button", name="Try an example")
    visitor.write_pair("Watu wawili", "Watu")
    page.get_by_role("button", name="Add a pair").click()
    page.get_by_role("button", name="Add a pair").click()
    visitor.write_pair("", "nusu tu", 3)
    example.click()
    swahili = written_pairs(page)
    # pair 2 was empty
    assert (swahili[0], swahili[2]) == (("Watu wawili", "Watu"), ("", "nusu tu"))
    assert [hypothesis for _, hypothesis in (swahili[1], *swahili[3:])] == [
        "Watoto wanacheza nje.",
        "Watoto hao ni ndugu.",
        "Hakuna mtu bustanini.",
    ]
    # another example takes the place of one that nobody has changed
    visitor.write_pair(swahili[1][0], "Watoto hawachezi.", 2)
    page.locator("#pairs").get_by_label("Language").select_option("fr")
    example.click()
    french = written_pairs(page)
    assert french[:3] == [swahili[0], (swahili[1][0], "Watoto hawachezi."), swahili[2]]
    assert [hypothesis for _, hypothesis in french[3:]] == [
        "Des enfants jouent dehors.",
        "Les enfants sont frères.",
        "Le parc est vide.",
    ]
    assert page.locator("legend").all_text_contents() == [f"Pair {number}" for number in range(1, 7)]


@in_chromium
def test_the_example_leaves_answers_to_what_a_person_wrote(visit: Visit) -> None:
    visitor = visit()
    page = visitor.arrive()
    visitor.write_pair("Watu wawili", "Watu")
    visitor.predict()
    expect(visitor.answer()).to_contain_text("Entailment")
    page.locator("#pairs-example").click()
    expect(visitor.answer()).to_contain_text("Entailment")
    expect(visitor.answer(2)).to_have_text("The answer appears here.")
    expect(page.locator("#pairs-about")).to_be_visible()
    page.get_by_role("button", name="Remove pair 1").click()
    page.locator("#pairs-example").click()
    expect(page.locator("#pairs-about")).to_be_hidden()


@in_chromium
def test_an_example_without_room_says_so(visit: Visit) -> None:
    visitor = visit()
    visitor.endpoint.most_pairs = 2
    page = visitor.arrive()
    visitor.write_pair("Watu wawili", "Watu")
    page.locator("#pairs-example").click()
    expect(page.locator("legend")).to_have_count(2)
    visitor.write_pair("Mtu", "Watu", 2)
    page.locator("#pairs-example").click()
    assert written_pairs(page) == [("Watu wawili", "Watu"), ("Mtu", "Watu")]
    expect(page.locator("#pairs-error")).to_have_text("What you wrote stays. Remove a pair to see an example.")
    page.get_by_role("button", name="Remove pair 2").click()
    page.locator("#pairs-example").click()
    expect(page.locator("#pairs-error")).to_be_hidden()


@in_chromium
def test_zero_shot_shows_the_labels_in_the_order_of_the_answer(visit: Visit) -> None:
    visitor = visit(reduced_motion="reduce")
    page = visitor.arrive("zero-shot")
    page.get_by_label("Text", exact=True).fill("Watu wawili wanacheza mpira")
    page.get_by_label("Labels", exact=True).focus()
    page.keyboard.type("siasa")
    press(page, "Enter")
    page.keyboard.type("muziki,michezo, siasa,chakula,")
    chips = page.get_by_role("list", name="Labels so far").get_by_role("listitem")
    assert chips.all_inner_texts() == ["siasa\n×", "muziki\n×", "michezo\n×", "chakula\n×"]
    press(page, "Backspace")
    expect(chips).to_have_count(3)
    page.get_by_role("button", name="Remove muziki").press("Enter")
    assert focused(page) == "zero-label"
    # what still stands in the field counts as well
    page.keyboard.type("muziki")
    page.get_by_label("Template").fill("Mada ni {}.")
    page.get_by_role("switch", name="Several labels may hold").press("Space")
    page.get_by_role("button", name="Sort").press("Enter")

    answer = page.get_by_role("group", name="Answer")
    shown = bars(answer)
    assert [bar[:3] for bar in shown] == [("muziki", 0.61, "61.0 %"), ("michezo", 0.305, "30.5 %"), ("siasa", 0.1525, "15.3 %")]
    assert [bar[3] for bar in shown] == pytest.approx([0.61, 0.305, 0.1525], abs=0.01)
    expect(answer).to_contain_text("Swahili, detected")
    expect(answer).to_contain_text("nli-sw, version 4")
    expect(answer).to_contain_text("inference 3.0 ms")
    expect(answer).to_contain_text("without the model's temperature")
    expect(page.locator("#zero-said")).to_have_text("3 labels sorted. Best: muziki, 61.0 %.")
    assert visitor.endpoint.asked[-1] == {
        "text": "Watu wawili wanacheza mpira",
        "labels": ["siasa", "michezo", "muziki"],
        "template": "Mada ni {}.",
        "multi_label": True,
        "truncate": False,
    }


def sort(page: Page, text: str, labels: str) -> Locator:
    """Ask for the labels of a text; the place of the answer."""
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_label("Labels", exact=True).fill(labels)
    page.get_by_role("button", name="Sort").click()
    return page.get_by_role("group", name="Answer")


@in_chromium
@pytest.mark.parametrize("change", ["text", "new label", "removed label", "template", "several", "language", "example"])
def test_an_edited_question_marks_its_zero_shot_answer_as_old(visit: Visit, change: str) -> None:
    page = visit().arrive("zero-shot")
    answer = sort(page, "Watu wawili wanacheza mpira", "siasa,michezo")
    expect(answer).to_contain_text("michezo")
    expect(answer).not_to_contain_text("Changed")
    # an entry without a label changes nothing
    page.get_by_role("button", name="Add", exact=True).click()
    expect(answer).not_to_contain_text("Changed")
    match change:
        case "text":
            page.get_by_label("Text", exact=True).press("End")
            page.keyboard.type(" leo!")
        case "new label":
            page.get_by_label("Labels", exact=True).fill("chakula")
        case "removed label":
            page.get_by_role("button", name="Remove siasa").click()
        case "template":
            page.get_by_label("Template").fill("Mada ni {}.")
        case "several":
            page.get_by_role("switch", name="Several labels may hold").press("Space")
        case "language":
            page.locator("#zero-language").select_option("ur")
        case "example":
            page.get_by_role("button", name="Remove siasa").click()
            page.get_by_role("button", name="Remove michezo").click()
            page.locator("#zero-example").click()
    expect(answer.get_by_text("Changed since this answer.")).to_have_count(1)
    page.get_by_role("button", name="Sort").click()
    expect(answer.get_by_text("Changed since this answer.")).to_have_count(0)
    expect(answer.get_by_role("meter").first).to_be_visible()


@in_chromium
def test_a_text_that_is_edited_while_it_is_sorted_marks_the_answer_as_old(visit: Visit) -> None:
    page = visit().arrive("zero-shot")
    held = []
    page.route("**/zero-shot", lambda route: held.append(route))
    with page.expect_request("**/zero-shot"):
        answer = sort(page, "Watu wawili", "siasa,michezo")
    expect(answer).to_have_attribute("aria-busy", "true")
    page.get_by_label("Text", exact=True).fill("Mtu mmoja wa leo")
    held[0].continue_()
    expect(answer).to_contain_text("michezo")
    expect(answer).to_contain_text("Changed since this answer.")


@in_chromium
def test_a_refused_question_leaves_no_answer_to_another_one(visit: Visit) -> None:
    visitor = visit()
    visitor.expected = "Failed to load resource.*(422|429)"
    page = visitor.arrive("zero-shot")
    answer = sort(page, "Watu wawili", "siasa,michezo")
    expect(answer).to_contain_text("michezo")
    # the server's own trouble says nothing against an answer to the same question, nor for one to another
    visitor.endpoint.broken = ApiError(429, "busy", "too many requests wait")
    page.get_by_role("button", name="Sort").click()
    expect(page.locator("#zero-error")).to_have_text("Too many requests wait.")
    expect(answer).to_contain_text("michezo")
    expect(answer).not_to_contain_text("Changed")
    sort(page, "Mtu mmoja wa leo", "")
    expect(page.locator("#zero-error")).to_have_text("Too many requests wait.")
    expect(answer).to_contain_text("Changed since this answer.")
    visitor.endpoint.broken = ApiError(422, "too_long", "text 0: it has 5000 characters, at most 4000 are read", index=0)
    page.get_by_role("button", name="Sort").click()
    expect(page.get_by_label("Text", exact=True)).to_have_accessible_description(re.compile("5000 characters"))
    expect(answer).to_have_text("The labels appear here, the best one first.")


@in_chromium
def test_the_example_leaves_the_text_and_labels_that_a_person_wrote(visit: Visit) -> None:
    page = visit().arrive("zero-shot")
    language, example = page.locator("#zero-language"), page.locator("#zero-example")
    text, entry = page.get_by_label("Text", exact=True), page.get_by_label("Labels", exact=True)
    chips = page.get_by_role("list", name="Labels so far").get_by_role("listitem")
    language.select_option("sw")
    page.get_by_role("button", name="Sort").click()
    expect(text).to_have_accessible_description("Write a text.")
    entry.fill("siasa")
    example.click()
    expect(text).to_have_value("Watoto wawili wanacheza mpira bustanini.")
    expect(text).to_have_accessible_description("")
    # typed, though not yet added
    expect(entry).to_have_value("siasa")
    expect(chips).to_have_count(0)
    # another example takes the place of one that nobody has changed
    language.select_option("fr")
    example.click()
    expect(text).to_have_value("Deux enfants jouent au football dans le parc.")
    text.fill("Watu wawili")
    example.click()
    expect(text).to_have_value("Watu wawili")
    expect(entry).to_have_value("siasa")
    expect(page.locator("#zero-error")).to_have_text("What you wrote stays. Empty the text to see an example.")
    entry.fill("")
    example.click()
    expect(text).to_have_value("Watu wawili")
    expect(chips).to_have_count(4)
    expect(page.locator("#zero-error")).to_be_hidden()


@in_chromium
def test_zero_shot_names_what_is_missing(visit: Visit) -> None:
    visitor = visit()
    visitor.expected = "Failed to load resource.*422"
    page = visitor.arrive("zero-shot")
    page.get_by_label("Template").fill("no place")
    page.get_by_role("button", name="Sort").click()
    expect(page.get_by_label("Text", exact=True)).to_have_accessible_description("Write a text.")
    expect(page.get_by_label("Text", exact=True)).to_be_focused()
    expect(page.get_by_label("Labels", exact=True)).to_have_accessible_description(re.compile("Add at least one label"))
    expect(page.get_by_label("Template")).to_have_accessible_description(re.compile("Put {} once, where the label goes"))
    assert not any(visitor.endpoint.asked)
    page.get_by_label("Text", exact=True).fill("Watu")
    page.get_by_label("Labels", exact=True).fill("moja")
    page.get_by_label("Template").fill("{}")
    message = 'text 0 with label 2 has 300 tokens: shorten it, or send "truncate": true'
    visitor.endpoint.broken = ApiError(422, "too_long", message, index=0)
    page.get_by_role("button", name="Sort").click()
    expect(page.locator("#zero-label-error")).to_have_text(
        re.compile("300 tokens: shorten it, or tick “Cut a text that is too long”")
    )


@in_chromium
def test_a_key_is_asked_for_and_kept_in_this_tab_only(visit: Visit) -> None:
    visitor = visit()
    visitor.expected = "Failed to load resource.*401"
    visitor.endpoint.key = "right-key"
    page = visitor.arrive(state="asking")
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_contain_text("This endpoint answers those who have a key.")
    key = dialog.get_by_label("Key", exact=True)
    expect(key).to_be_focused()
    press(page, "Enter")
    expect(key).to_have_accessible_description(re.compile("Enter a key."))
    page.keyboard.type("klíč")
    press(page, "Enter")
    expect(key).to_have_accessible_description(re.compile("letters, digits and signs of ASCII"))
    key.fill("wrong-key")
    press(page, "Enter")
    expect(dialog).to_contain_text("The endpoint refused this key.")
    expect(key).to_have_value("")
    key.fill("right-key")
    press(page, "Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#state")).to_have_text("Ready in 3 languages")
    kept = "JSON.stringify([Object.values(sessionStorage), localStorage.length, document.cookie])"
    assert json.loads(page.evaluate(kept)) == [["right-key"], 0, ""]
    # a reload in the same tab needs no new one, a second tab does
    visitor.arrive()
    second = page.context.new_page()
    second.goto(f"{visitor.url}/ui")
    expect(second.get_by_role("dialog", name="API key")).to_be_visible()
    second.close()
    page.get_by_role("button", name="Change the key").click()
    dialog.get_by_role("button", name="Forget the key").click()
    expect(dialog).to_contain_text("This endpoint answers those who have a key.")
    assert json.loads(page.evaluate(kept)) == [[], 0, ""]


@in_chromium
def test_a_question_goes_on_after_its_key_came(visit: Visit) -> None:
    visitor = visit()
    visitor.expected = "Failed to load resource.*401"
    page = visitor.arrive()
    visitor.endpoint.key = "late-key"
    visitor.write_pair("Watu wawili", "Watu")
    visitor.predict()
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_be_visible()
    press(page, "Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator("#pairs-error")).to_have_text("An API key is needed.")
    visitor.predict()
    dialog.get_by_label("Key", exact=True).fill("late-key")
    dialog.get_by_role("button", name="Use this key").click()
    expect(visitor.answer()).to_contain_text("Entailment")
    expect(page.locator("#pairs-error")).to_be_hidden()


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the stand-in's card, and a reference that drift is measured against."""
    plain = tiny_onnx_folder(tmp_path_factory.mktemp("plain") / "sw")
    return with_card(plain, plain.parent / "described", model("sw", 1)["card"] | {"reference": REFERENCE})


@in_chromium
def test_the_page_understands_the_real_application(browser: Browser, described: Path) -> None:
    digest = read_manifest(described).digest
    with visits(browser, serve(f"sw={described}").app, Endpoint()) as visit:
        visitor = visit(reduced_motion="reduce")
        page = visitor.arrive()
        expect(page.locator("#state")).to_have_text("Ready in 1 language")
        page.locator("#pairs").get_by_label("Language").select_option("sw")
        for number, pair in enumerate(PAIRS[:2], start=1):
            visitor.write_pair(*pair, number)
            page.get_by_role("button", name="Add a pair").click()
        visitor.write_pair("mvua " * 40, "mvua", 3)
        visitor.predict()
        for number, probabilities in enumerate(likely(PAIRS[:2]), start=1):
            found = {name.lower(): value for name, value, _, _ in bars(visitor.answer(number))}
            assert [found[name] for name in NAMES] == pytest.approx(list(probabilities), abs=1e-4)
            expect(visitor.answer(number)).to_contain_text("Swahili, as chosen")
        expect(page.get_by_role("group", name="Pair 3", exact=True)).to_contain_text(
            "This pair has 45 tokens, the model reads 16: shorten it, or tick “Cut pairs that are too long”."
        )
        for told in ("nli-sw", "fp32", f"digest {digest[:12]}", "tokenisation", "inference"):
            expect(page.locator("#pairs-about")).to_contain_text(told)

        page.get_by_role("tab", name="Zero-shot").click()
        page.locator("#zero-language").select_option("sw")
        answer = sort(page, "mvua inanyesha leo", "mvua,mpira")
        shares = {name: value for name, value, _, _ in bars(answer)}
        assert set(shares) == {"mvua", "mpira"}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
        expect(answer).to_contain_text(f"digest {digest[:12]}")

        page.get_by_role("tab", name="Models").click()
        swahili = page.get_by_role("article", name="Swahili")
        for told in (digest, "from a folder", "up to 16 tokens a pair", "No decision is recorded", "65.2 % right of 5,010 pairs"):
            expect(swahili).to_contain_text(told)
        page.get_by_role("tab", name="Drift").click()
        expect(swahili).to_contain_text("2 pairs since")
        expect(swahili).to_contain_text("Too few pairs for a PSI")


@in_chromium
def test_models_tell_how_they_were_gated_and_what_was_refused(visit: Visit) -> None:
    page = visit().arrive("models")
    swahili = page.get_by_role("article", name="Swahili")
    refused = swahili.get_by_role("note")
    expect(refused).to_contain_text("Version 5 was refused; version 4 serves on.")
    expect(refused).to_contain_text("Golden pair 3 differs by 0.4 from the recorded logits.")
    expect(refused).to_contain_text("23 Nov 2026, 08:00")
    for told in (
        DIGEST,
        "int8 loses 0.2 points, 0.5 are allowed.",
        "Accuracy fp32 65.4 %, int8 65.2 %, on 1,500 pairs.",
        "They agree on 96.2 %.",
        "1.370",
        "Fitted on English development pairs.",
        "Calibration error 0.121 before, 0.043 after.",
        "Promoted21 Nov 2026, 17:40",
        "accuracy 0.652 against the champion's 0.631",
        "65.2 % right of 5,010 pairs",
        "XNLI test, read once",
    ):
        expect(swahili).to_contain_text(told)
    rows = swahili.get_by_role("table", name="Accuracy by confidence").get_by_role("row").all_inner_texts()
    assert [re.split(r"\s*[\t\n]\s*", row.strip()) for row in rows] == [
        ["Confidence", "Pairs", "Right"],
        ["over 0.9", "812", "90.3 %"],
        ["0.5 to 0.9", "3,588", "64.1 %"],
        ["under 0.5", "610", "–"],
    ]
    french = page.get_by_role("article", name="French")
    without = french.get_by_role("note")
    expect(without).to_have_text("The registry has no champion for this language any more; version 2 serves on.")
    expect(french).to_contain_text("answers for languages that are not served")
    urdu = page.get_by_role("article", name="Urdu")
    expect(urdu.get_by_role("note")).to_have_count(0)
    for told in (
        "from a folder",
        "fp32",
        "No decision between precisions was recorded.",
        "No decision is recorded",
        "No evaluation came with this model.",
    ):
        expect(urdu).to_contain_text(told)


@in_chromium
def test_a_new_version_is_seen_after_refresh(visit: Visit) -> None:
    visitor = visit()
    page = visitor.arrive("models")
    expect(page.get_by_role("article", name="Swahili")).to_contain_text("version 4")
    visitor.endpoint.models = [model("sw", 5, gate={"promote": False, "reasons": ["forced"], "decided_at": None})]
    page.get_by_role("button", name="Refresh").click()
    expect(page.get_by_role("article", name="Swahili")).to_contain_text("version 5")
    expect(page.get_by_role("article", name="Swahili")).to_contain_text("Not promoted")
    expect(page.get_by_role("article", name="Swahili").get_by_role("note")).to_have_count(0)
    expect(page.locator("#state")).to_have_text("Ready in 1 language")
    expect(page.get_by_role("article")).to_have_count(1)


@in_chromium
def test_a_model_whose_record_is_odd_hides_no_other_and_is_looked_at_again(visit: Visit) -> None:
    visitor = visit()
    visitor.expected = "RangeError|TypeError"
    dated = model("sw", 4)["gate"] | {"decided_at": "yesterday"}
    visitor.endpoint.models = [model("sw", 4, gate=dated), model("fr", 2, card={"evaluation": {"n": 5}}), plain_model()]
    visitor.page.clock.install()
    page = visitor.arrive("models")
    for name in ("Swahili", "French"):
        expect(page.get_by_role("article", name=name)).to_contain_text("This model answers, but its record cannot be shown.")
    expect(page.get_by_role("article", name="Urdu")).to_contain_text("from a folder")
    visitor.endpoint.models = [model("sw", 5), model("fr", 2)]
    page.clock.fast_forward(30_000)
    expect(page.get_by_role("article", name="Swahili")).to_contain_text("version 5")
    expect(page.get_by_role("article", name="French")).to_contain_text("version 2")


def alter_once(page: Page, path: str, change: dict[str, Any]) -> None:
    """The first answer of a path comes with other values, as from an endpoint of another version."""
    page.route(f"**/{path}", lambda route: route.fulfill(json=route.fetch().json() | change), times=1)


@in_chromium
def test_what_one_part_of_the_page_cannot_read_is_told_to_the_others(visit: Visit) -> None:
    visitor = visit()
    visitor.expected = "TypeError"
    page = visitor.page
    page.clock.install()
    # the pairs read it, which are told before the models and the labels
    alter_once(page, "models", {"limits": None})
    visitor.arrive("models")
    expect(page.get_by_role("article", name="Swahili")).to_contain_text("version 4")
    expect(page.locator("#zero-language option")).to_have_count(4)
    assert len(visitor.complaints) == 1
    visitor.endpoint.models = [model("sw", 5)]
    page.clock.fast_forward(30_000)
    expect(page.get_by_role("article", name="Swahili")).to_contain_text("version 5")
    expect(page.locator("#state")).to_have_text("Ready in 1 language")


@in_chromium
@pytest.mark.parametrize(
    ("path", "change"), [("models", {"models": None}), ("drift", {"languages": {"sw": {"since": "yesterday"}}})]
)
def test_after_an_answer_of_another_shape_the_page_looks_again(visit: Visit, path: str, change: dict[str, Any]) -> None:
    visitor = visit()
    visitor.expected = "reading 'length'|Invalid time value"
    page = visitor.page
    page.clock.install()
    alter_once(page, path, change)
    with page.expect_event("pageerror"):
        page.goto(f"{visitor.url}/ui#{path}")
    expect(page.get_by_role("article")).to_have_count(0)
    page.clock.fast_forward(30_000)
    expect(page.get_by_role("article", name="Swahili")).to_be_visible()
    expect(page.locator("#state")).to_have_text("Ready in 3 languages")


@in_chromium
def test_drift_shows_now_beside_the_reference(visit: Visit) -> None:
    visitor = visit(reduced_motion="reduce")
    page = visitor.arrive("drift")
    swahili = page.get_by_role("article", name="Swahili")
    expect(swahili).to_contain_text("1,204 pairs since 22 Nov 2026, 09:15")
    expect(swahili).to_contain_text("PSI 0.271far apart")
    expect(swahili).to_contain_text("PSI 0.074alike")
    expect(page.get_by_role("article", name="French")).to_contain_text("PSI 0.124something moves")
    few = page.get_by_role("article", name="German")
    expect(few).to_contain_text("Too few pairs for a PSI")
    expect(few).not_to_contain_text("PSI 0")
    urdu = page.get_by_role("article", name="Urdu")
    expect(urdu).to_contain_text("Nothing has been asked in this language yet.")
    expect(urdu).to_contain_text("nothing to compare with")

    drawn = swahili.locator(".column.now").evaluate_all("columns => columns.map(column => column.offsetHeight)")
    served = DRIFT["sw"]["served"]["confidence"][3:]
    assert [height / max(drawn) for height in drawn] == pytest.approx([share / max(served) for share in served], abs=0.02)
    expect(swahili.get_by_role("table")).to_have_count(0)
    swahili.get_by_text("The numbers").press("Enter")
    table = swahili.get_by_role("table", name="Share of pairs by confidence")
    assert table.get_by_role("row").nth(6).inner_text().split("\t") == ["0.5 to 0.6", "22.0 %", "16.0 %"]
    labels = swahili.get_by_role("table", name="Share of pairs by label")
    assert labels.get_by_role("row").nth(2).inner_text().split("\t") == ["Neutral", "46.0 %", "33.0 %"]
    # new numbers come under the reader without closing what was opened or taking the focus
    visitor.endpoint.drift = {"sw": {**DRIFT["sw"], "pairs": 1205}}
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(swahili).to_contain_text("1,205 pairs")
    expect(table).to_be_visible()
    assert focused(page) == "numbers-sw"


@in_chromium
def test_nothing_is_served_yet_and_then_it_is(visit: Visit) -> None:
    visitor = visit()
    visitor.endpoint.ready = False
    page = visitor.arrive("models", state="waiting")
    expect(page.locator("#state")).to_have_text("Not ready: loading nli-sw")
    expect(page.locator("#models")).to_contain_text("Not ready: loading nli-sw.")
    visitor.endpoint.ready = True
    # by itself: the page looks again
    expect(page.get_by_role("article", name="Swahili")).to_be_visible()
    expect(page.locator("#state")).to_have_text("Ready in 3 languages")


@in_chromium
def test_offline_is_said_and_what_was_written_stays(visit: Visit) -> None:
    visitor = visit()
    visitor.expected = "ERR_INTERNET_DISCONNECTED"
    page = visitor.arrive()
    visitor.write_pair("Watu wawili", "Watu")
    page.context.set_offline(True)
    visitor.predict()
    expect(page.locator("#pairs-error")).to_contain_text("The server cannot be reached.")
    page.get_by_role("tab", name="Models").click()
    page.get_by_role("button", name="Refresh").click()
    expect(page.locator("#state")).to_have_text("Offline")
    expect(page.get_by_role("alert").filter(visible=True)).to_contain_text("The server cannot be reached.")
    # models that were seen stay
    expect(page.get_by_role("article", name="Swahili")).to_be_visible()
    page.context.set_offline(False)
    expect(page.locator("#state")).to_have_text("Ready in 3 languages")
    expect(page.locator("#banner")).to_be_hidden()
    page.get_by_role("tab", name="Pairs").click()
    expect(page.get_by_label("Premise")).to_have_value("Watu wawili")
    visitor.predict()
    expect(visitor.answer()).to_contain_text("Entailment")


@in_chromium
def test_a_slow_answer_shows_that_it_is_under_way(visit: Visit) -> None:
    visitor = visit()
    page = visitor.arrive()
    held = []
    page.route("**/predict", lambda route: held.append(route))
    visitor.write_pair("Watu wawili", "Watu")
    visitor.predict()
    button = page.locator("#pairs-form [type=submit]")
    expect(button).to_have_text("Asking…")
    expect(visitor.answer()).to_have_attribute("aria-busy", "true")
    button.click(force=True)
    press(page, "Control+Enter")
    held[0].continue_()
    expect(visitor.answer()).to_contain_text("Entailment")
    expect(button).to_have_text("Predict")
    expect(button).to_be_focused()
    # one question, however often the button was pressed
    assert len(held) == 1


@in_chromium
def test_the_endpoint_gives_up_before_the_page_does(visit: Visit) -> None:
    visitor = visit()
    # noted when it is set, so that nobody waits for it here
    visitor.page.add_init_script(
        "const timeout = AbortSignal.timeout.bind(AbortSignal);"
        "AbortSignal.timeout = (milliseconds) => timeout((window.patience = milliseconds));"
    )
    page = visitor.arrive()
    visitor.write_pair("Watu wawili", "Watu")
    with page.expect_request("**/predict") as asked:
        visitor.predict()
    expect(visitor.answer()).to_contain_text("Entailment")
    # whatever the endpoint's own deadline is: it takes the sooner of the two
    assert 0 < int(asked.value.headers["x-deadline-ms"]) < page.evaluate("window.patience")


@in_chromium
def test_tabs_move_by_arrows_and_keep_their_address(visit: Visit) -> None:
    visitor = visit()
    page = visitor.arrive()
    page.get_by_role("tab", name="Pairs").focus()
    for key, name in (
        ("ArrowRight", "Zero-shot"),
        ("End", "Drift"),
        ("ArrowRight", "Pairs"),
        ("ArrowLeft", "Drift"),
        ("Home", "Pairs"),
    ):
        press(page, key)
        tab = page.get_by_role("tab", name=name)
        expect(tab).to_be_focused()
        expect(tab).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("tab", selected=True)).to_have_count(1)
        expect(page.get_by_role("tabpanel")).to_have_count(1)
        expect(page.get_by_role("tabpanel", name=name)).to_be_visible()
        assert page.locator("[role=tab][tabindex='0']").all_inner_texts() == [name]
        assert page.locator("[role=tab][tabindex='-1']").count() == 3
        assert page.evaluate("location.hash") == f"#{name.lower()}"
    page.get_by_role("tab", name="Models").click()
    page.reload()
    expect(page.get_by_role("tabpanel", name="Models")).to_be_visible()


@in_chromium
def test_texts_stay_texts(visit: Visit) -> None:
    visitor = visit()
    bomb = "<img src=x onerror=document.title='owned'>"
    card = {**model("sw", 1)["card"], "evaluation": None, "temperature": {"value": 1, "fitted_on": bomb, "ece": None}}
    visitor.endpoint.models = [model("sw", 4, name=bomb, card=card)]
    page = visitor.arrive("zero-shot")
    page.get_by_label("Text", exact=True).fill(f"wa {bomb}")
    page.get_by_label("Labels", exact=True).fill(bomb)
    page.get_by_role("button", name="Sort").click()
    expect(page.get_by_role("group", name="Answer").get_by_text(bomb).first).to_be_visible()
    page.get_by_role("tab", name="Models").click()
    expect(page.get_by_role("article").get_by_text(bomb).first).to_be_visible()
    assert page.title() == "conlst: try the endpoint"
    assert page.locator("img").count() == 1


@in_chromium
def test_nothing_that_was_written_is_kept(visit: Visit) -> None:
    visitor = visit()
    page = visitor.arrive()
    visitor.write_pair("Watu wawili", "Watu")
    visitor.predict()
    expect(visitor.answer()).to_contain_text("Entailment")
    kept = page.evaluate(
        "[localStorage.length, sessionStorage.length, document.cookie, location.search + location.hash, history.state]"
    )
    assert kept == [0, 0, "", "", None]
    page.reload()
    expect(page.get_by_label("Premise")).to_have_value("")
    assert not any("Watu" in address for address in visitor.requests)


def fill_everything(visitor: Visitor) -> None:
    """Every section with content, errors and words that do not break by themselves."""
    page = visitor.page
    page.locator("#pairs-example").click()
    visitor.write_pair("x" * 300, LONG, 2)
    visitor.predict()
    expect(visitor.answer(1)).to_contain_text("Entailment")
    page.locator("#tab-zero-shot").click()
    page.get_by_label("Text", exact=True).fill("wa " + "y" * 300)
    page.get_by_label("Labels", exact=True).fill("z" * 120 + ",الطقس الجميل,")
    page.get_by_role("button", name="Sort").click()
    expect(page.get_by_role("group", name="Answer")).to_contain_text("Swahili")
    page.get_by_label("Text", exact=True).fill("")
    page.get_by_role("button", name="Sort").click()
    page.locator("#tab-drift").click()
    page.locator("summary").first.click()


@in_chromium
@pytest.mark.parametrize("width", [320, 768])
def test_nothing_is_wider_than_the_screen(visit: Visit, width: int) -> None:
    visitor = visit(viewport={"width": width, "height": 640}, has_touch=True, is_mobile=width < 400)
    page = visitor.arrive()
    fill_everything(visitor)
    for section in SECTIONS:
        page.locator(f"#tab-{section}").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, section
        beyond = measure(page, "beyond")
        assert beyond == [], section


@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_at_least_aa(visit: Visit, scheme: str) -> None:
    visitor = visit(color_scheme=scheme, reduced_motion="reduce")
    page = visitor.arrive()
    ground = [int(part) for part in re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))]
    assert (sum(ground) / 3 > 128) == (scheme == "light")
    fill_everything(visitor)
    for section in SECTIONS:
        page.locator(f"#tab-{section}").click()
        rows = measure(page, "contrast")
        assert len(rows) > 20
        assert [row for row in rows if row[1] < row[2]] == [], section


@in_chromium
def test_names_roles_and_order_for_those_who_do_not_see_it(visit: Visit) -> None:
    visitor = visit()
    page = visitor.arrive()
    fill_everything(visitor)
    for section in SECTIONS:
        page.locator(f"#tab-{section}").click()
        assert measure(page, "access") == [], section
    assert page.locator("[dir=auto]").count() > 5


@in_chromium
@pytest.mark.parametrize("section", SECTIONS)
def test_everything_is_reached_by_tab_and_seen_when_it_is(visit: Visit, section: str) -> None:
    visitor = visit()
    page = visitor.arrive()
    fill_everything(visitor)
    page.locator(f"#tab-{section}").click()
    page.locator(".skip").focus()
    wanted = measure(page, "reachable")
    assert wanted >= 5
    for seen in range(1, wanted):
        press(page, "Tab")
        tag, outline, markup = measure(page, "focused")
        assert tag != "BODY", f"{seen} of {wanted} were reached"
        assert outline >= 2, markup
    press(page, "Tab")
    assert measure(page, "focused")[0] == "BODY"


@in_chromium
def test_motion_is_left_out_for_those_who_ask(visit: Visit) -> None:
    moving = """() => [...document.querySelectorAll("*")].filter(element => {
        const style = getComputedStyle(element);
        return /[1-9]/.test(style.transitionDuration) || style.animationName !== "none";
    }).length"""
    for motion, none in (("reduce", True), ("no-preference", False)):
        visitor = visit(reduced_motion=motion)
        page = visitor.arrive()
        visitor.write_pair("Watu wawili", "Watu")
        visitor.predict()
        expect(visitor.answer()).to_contain_text("Entailment")
        assert (page.evaluate(moving) == 0) is none


@in_chromium
def test_right_to_left_texts_run_their_own_way(visit: Visit) -> None:
    visitor = visit()
    page = visitor.arrive("zero-shot")
    page.get_by_label("Text", exact=True).fill("طفلان يلعبان كرة القدم")
    page.get_by_label("Labels", exact=True).fill("رياضة، سياسة")
    page.get_by_role("button", name="Sort").click()
    expect(page.get_by_role("group", name="Answer")).to_contain_text("سياسة")
    way = "element => getComputedStyle(element).direction"
    assert page.get_by_label("Text", exact=True).evaluate(way) == "rtl"
    assert page.locator(".bar .name").first.evaluate(way) == "rtl"
    assert page.locator("#zero-answer").evaluate(way) == "ltr"
    # both commas part labels
    assert visitor.endpoint.asked[-1]["labels"] == ["رياضة", "سياسة"]
