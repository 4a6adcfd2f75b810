"""Made-up words, short and of one form, for labels that mean nothing until a page binds them."""

import numpy as np

WORDS = (
    "bim", "blik", "boz", "daf", "dax", "dop", "fep", "fim", "gaz", "gip", "gorp", "hib", "hux", "jad", "jom", "kiv",
    "kep", "lub", "luz", "mib", "moz", "nad", "nup", "pax", "pim", "pog", "quib", "quoz", "rab", "rif", "sib", "sov",
    "taz", "tib", "tup", "vam", "vek", "vim", "wif", "wug", "yab", "yot", "zav", "zep", "zob",
)


def check_labels(labels: tuple[str, ...], ways: int):
    """Raises ValueError unless `ways` labels with different first letters can be drawn."""
    initials = {label[:1] for label in labels}
    if "" in initials or len(initials) < ways:
        raise ValueError(f"labels={labels!r} have {len(initials - {''})} different first letters; pages of {ways} "
                         f"classes need at least {ways}, and no label may be empty")


def draw_labels(labels: tuple[str, ...], ways: int, rng: np.random.Generator) -> list[str]:
    """`ways` labels whose first letters differ, so that the first letter already decides.

    Raises:
        ValueError: if the vocabulary is too small.
    """
    check_labels(labels, ways)
    drawn = {}
    for i in rng.permutation(len(labels)):
        drawn.setdefault(labels[i][0], labels[i])
    return list(drawn.values())[:ways]
