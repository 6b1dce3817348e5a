"""Which language a text is written in.

With py3langid (Barbaresi's continuation of Lui and Baldwin, "langid.py", 2012): its model of 139 languages comes with the
package, is read without pickle and needs numpy alone.
"""

from collections.abc import Collection, Mapping, Sequence

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from conlst.runtime.heap import give_back

# of each text: enough to tell, while a long one costs no more time than this
_CHARACTERS = 500
# callers ask mostly in what is served. Of short XNLI hypotheses 98.9 % are found with 3 and 97.8 % with 1, where 1.2 and 0.2 % of
# those in a language that is not served are taken for one that is; 10 finds no more and takes 3.6 %
_SERVED = 3.0
# digits and names reach less; of short XNLI hypotheses 0.6 % do
_LEAST = 0.2
# one to three words reach less as well, and are then only asked which of the served languages they are in: one with so many times
# the share of the next. Among 15 languages 36 % of such beginnings of XNLI hypotheses have one, which is wrong for 8 % of them
# (with 2: 49 % and 13 %)
_LEAD = 3.0
# and with so many times what a text that tells nothing gives to each. With Swahili alone served, 73 % of its beginnings are found
# and 9 % of those in 14 other languages are taken for it (with 1: 85 % and 24 %)
_ABOVE_EVEN = 2.0
_NO_LANGUAGE = "zxx"


class Detector:
    """Safe to use from several threads. Takes a second and 80 MB to open.

    Attributes:
        languages: those that it can find, as ISO 639 codes.
    """

    def __init__(self) -> None:
        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        self.languages = frozenset(self._identifier.nb_classes) - {_NO_LANGUAGE}
        give_back()

    def language(self, texts: Sequence[str], served: Collection[str]) -> str | None:
        """ISO 639 code of the language of texts that belong together, ``None`` if it cannot be told.

        Args:
            served: languages that are expected more than others. A text too short to be told among all that there are is in one
                of these if it speaks for that one clearly more than for the rest of them.
        """
        shares = dict(self._identifier.rank("\n".join(text[:_CHARACTERS] for text in texts)))
        language = max(shares, key=lambda code: shares[code] * (_SERVED if code in served else 1.0))
        if language == _NO_LANGUAGE:
            return None
        if shares[language] >= _LEAST:
            return language
        return _leader({code: shares[code] for code in served if code in shares}, 1 / len(shares))


def _leader(shares: Mapping[str, float], even: float) -> str | None:
    """The language that clearly leads the others, if it also has clearly more than ``even``, which texts without a word give."""
    ranking = sorted(shares, key=lambda code: shares[code], reverse=True)
    if not ranking or shares[ranking[0]] < _ABOVE_EVEN * even:
        return None
    second = shares[ranking[1]] if len(ranking) > 1 else 0.0
    return ranking[0] if shares[ranking[0]] >= _LEAD * second else None
