"""Machine-translated training data: labelled pairs in another language, as XLM-R-MT and CoNLST-MT learn from them."""

import logging

import pyarrow as pa
from datasets import Dataset

from conlst.contract.errors import BackendError, DataError
from conlst.data.backtranslation import Translator, translate_all, with_texts
from conlst.data.backtranslation.cache import TranslationCache
from conlst.data.pairs import require_labels

_log = logging.getLogger(__name__)


def translate_pairs(pairs: Dataset, source: str, target: str, translator: Translator, cache: TranslationCache) -> Dataset:
    """Labelled pairs with both texts translated; label, genre and pair_id are kept, ``language`` is ``target``.

    A pair without a translation of one of its texts is left out; how many were is logged.

    Raises:
        BackendError: from the translator, or if source and target are the same.
        DataError: if a pair has no label, or no pair is left.
    """
    if source == target:
        raise BackendError(f"{source} cannot be translated into itself; set another target language")
    require_labels(pairs, f"the pairs to translate into {target}")
    premises, hypotheses = list(pairs["premise"]), list(pairs["hypothesis"])
    texts = list(dict.fromkeys([*premises, *hypotheses]))
    translations = dict(zip(texts, translate_all(texts, source, target, translator, cache), strict=True))
    kept = [i for i, (p, h) in enumerate(zip(premises, hypotheses, strict=True)) if translations[p] and translations[h]]
    left_out = len(pairs) - len(kept)
    _log.log(
        logging.WARNING if left_out else logging.INFO,
        "translated %d pairs %s-%s by %s; %d were left out because a translation is empty",
        len(kept),
        source,
        target,
        translator.name,
        left_out,
    )
    if not kept:
        raise DataError(f"{translator.name} translated no pair from {source} to {target}; use another backend")
    table: pa.Table = with_texts(pairs.select(kept), translations).with_format("arrow")[:]
    column = table.schema.get_field_index("language")
    return Dataset(table.set_column(column, table.schema.field("language"), [[target] * len(table)]))
