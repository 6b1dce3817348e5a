from concurrent.futures import ThreadPoolExecutor

import pytest

from served import detector

# written for this test, as short as callers' texts are
SENTENCES = {
    "ar": "خرج الأولاد إلى الحديقة بعد انتهاء المطر.",
    "bg": "Децата излязоха в градината след дъжда.",
    "de": "Nach dem Regen gingen die Kinder in den Garten.",
    "el": "Μετά τη βροχή τα παιδιά βγήκαν στον κήπο.",
    "en": "The children went into the garden after the rain.",
    "es": "Los niños salieron al jardín después de la lluvia.",
    "fr": "Les enfants sont sortis dans le jardin après la pluie.",
    "hi": "बारिश के बाद बच्चे बगीचे में गए।",
    "id": "Anak-anak pergi ke kebun setelah hujan berhenti.",
    "ru": "После дождя дети вышли в сад.",
    "sw": "Watoto walikwenda bustanini baada ya mvua kunyesha.",
    "th": "เด็ก ๆ ออกไปที่สวนหลังฝนตก",
    "tr": "Çocuklar yağmurdan sonra bahçeye çıktılar.",
    "ur": "بارش کے بعد بچے باغ میں چلے گئے۔",
    "vi": "Bọn trẻ ra vườn sau cơn mưa.",
    "zh": "雨后孩子们到花园里去了。",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_the_languages_of_xnli_and_indonesian_are_found(language: str) -> None:
    assert detector().language([SENTENCES[language]], set(SENTENCES)) == language


def test_texts_that_belong_together_are_judged_together() -> None:
    assert detector().language(["OK", SENTENCES["sw"]], ["sw", "fr"]) == "sw"


@pytest.mark.parametrize("texts", [["1234 56"], ["🌧️🌧️"], ["x"]])
@pytest.mark.parametrize("served", [[], ["sw"], ["sw", "en"]])
def test_what_has_no_language_is_not_guessed(texts: list[str], served: list[str]) -> None:
    assert detector().language(texts, served) is None


@pytest.mark.parametrize(
    ("text", "served", "language"),
    [
        ("Habari", ["sw"], "sw"),
        ("Asante sana", ["sw", "en"], "sw"),
        ("Ndiyo", ["en", "fr", "sw", "zh"], "sw"),
        ("Hello", ["sw", "en"], "en"),
        ("Oui", ["fr", "sw", "hi"], "fr"),
        ("Спасибо", ["ru", "en", "sw"], "ru"),
        ("Нет", ["ru", "ur"], "ru"),
        ("شكرا", ["ar", "ru"], "ar"),
    ],
)
def test_a_word_or_two_are_in_the_served_language_that_clearly_leads(text: str, served: list[str], language: str) -> None:
    assert detector().language([text], served) == language


@pytest.mark.parametrize(
    ("text", "served"),
    [
        ("Привет", ["ru", "bg"]),
        ("Благодаря", ["ru", "bg"]),
        ("Asante sana", ["fr", "sw"]),
        ("Нет", ["sw", "en"]),
        ("Habari", ["qqq"]),
    ],
)
def test_a_word_that_may_be_in_several_or_in_none_of_them_is_not_guessed(text: str, served: list[str]) -> None:
    assert detector().language([text], served) is None


def test_what_is_served_is_expected_but_not_forced() -> None:
    assert detector().language([SENTENCES["de"]], ["sw", "fr"]) == "de"


def test_a_long_text_is_judged_by_its_beginning() -> None:
    assert detector().language([SENTENCES["fr"] * 12 + SENTENCES["th"] * 400], ["fr", "th"]) == "fr"


def test_threads_may_share_it() -> None:
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda text: detector().language([text], SENTENCES), list(SENTENCES.values()) * 8))
    assert found == list(SENTENCES) * 8
