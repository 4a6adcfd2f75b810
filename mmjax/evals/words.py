"""Words of a caption, as caption metrics count them."""

import re

_TOKEN = re.compile(r"(?:[^\W\d_]\.){2,}|\d+(?:[.,:/]\d+)+|\w+(?:['\u2019./-]\w+)*|[^\w\s]")
_CONTRACTION = re.compile(r"(.+?)(n't|'(?:s|m|d|re|ve|ll))")
_SPLIT = {"cannot": ["can", "not"], "gonna": ["gon", "na"], "gotta": ["got", "ta"], "wanna": ["wan", "na"]}
_DROPPED = frozenset("\"'`()[]{}.?!,:;-\u2019\u2018\u201c\u201d\u2013\u2014\u2026")


def words(text: str) -> list[str]:
    """Lower-case words without punctuation, contractions split: "The dog's wet." -> the, dog, 's, wet.

    Follows the Penn Treebank tokenizer and the list of dropped marks of the COCO caption evaluation
    (arXiv:1504.00325, section 3.1) on what captions contain; it knows no abbreviations ("Mr.").
    """
    found = []
    for token in _TOKEN.findall(text.lower().replace("\u2019", "'")):
        if token in _SPLIT:
            found += _SPLIT[token]
        elif parts := _CONTRACTION.fullmatch(token):
            found += parts.groups()
        elif token not in _DROPPED:
            found.append(token)
    return found
