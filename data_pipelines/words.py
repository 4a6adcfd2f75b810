"""The words of a text, and how much of it is repetition."""

import re

# Scripts without spaces: kana, Han, Hangul. Each of their characters is a word.
_SINGLE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_SINGLE}]|[^\W{_SINGLE}]+")


def words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return _WORD.findall(text.lower())


def repetition(text_words: list[str], n: int = 5) -> float:
    """The share of the runs of n words that are not the first of their kind; 0 if there are none."""
    runs = list(zip(*(text_words[k:] for k in range(n)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
