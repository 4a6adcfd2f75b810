"""What is kept of the web: the filters of KOSMOS-1, Flamingo's M3W and OBELICS as settings, and lists of what to block.

Every page that is read ends in exactly one of PAGE_STAGES or is kept, in this order.
"""

import dataclasses
import hashlib

from data_pipelines import files

PAGE_STAGES = (
    "status is not 200", "not HTML", "page too large", "address blocked", "unsound markup", "no main text",
    "too few words", "too many words", "repeats itself", "language", "flagged words",           # one page at a time
    "same address, older", "no usable image", "too many images", "near duplicate", "one image, not drawn")     # all
KEPT = "kept"


@dataclasses.dataclass(frozen=True)
class Rules:
    """Thresholds of the filters. What the papers do not say is ours; README.md has a table of which is which.

    Attributes:
        languages: codes of resiliparse's detector; a page in none of them is dropped. Empty: all are kept.
        max_rank: distance from the language's profile beyond which the language is unknown.
        max_html_bytes: of a page.
        min_words, max_words: of the main text.
        max_repetition: largest share of the runs of five words that are not the first of their kind.
        max_flagged: largest share of words on the list of flagged words.
        blocked_in_image_address: an image whose address holds one of these is passed over.
        min_side, max_aspect, max_pixels, max_image_bytes: of images; what breaks them is passed over.
        single_colour: pass over images of which no channel, shrunk to 16 x 16, varies by more than this; -1 keeps all.
        max_image_uses: an image (by the SHA-256 of its bytes) on more pages than this is passed over on all of them.
        max_images: images of a page; `too_many` says whether the rest is left out ("cut") or the page ("drop").
        single_image_keep: share of the pages with one image that is kept, drawn by a hash of the address.
        similarity: of two pages' texts from which one of them goes.
    """

    languages: tuple[str, ...] = ("en",)
    max_rank: int = 1200
    max_html_bytes: int = 4 << 20
    min_words: int = 20
    max_words: int = 20_000
    max_repetition: float = 0.3
    max_flagged: float = 0.01
    blocked_in_image_address: tuple[str, ...] = ("logo", "button", "icon", "plugin", "widget")
    min_side: int = 64
    max_aspect: float = 3.0
    max_pixels: int = 50_000_000
    max_image_bytes: int = 20 << 20
    single_colour: int = 8
    max_image_uses: int = 10
    max_images: int = 5
    too_many: str = "cut"
    single_image_keep: float = 0.5
    similarity: float = 0.8

    def __post_init__(self):
        if self.too_many not in ("cut", "drop"):
            raise ValueError(f"too_many={self.too_many!r} must be 'cut' or 'drop'")
        for field in ("single_image_keep", "similarity", "max_repetition", "max_flagged"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field}={getattr(self, field)} must lie between 0 and 1")


PRESETS = {
    "kosmos1": Rules(),
    "m3w": Rules(max_images=30, single_image_keep=1.0),
    "obelics": Rules(max_images=30, too_many="drop", single_image_keep=1.0, min_side=150, max_aspect=2.0),
}


@dataclasses.dataclass(frozen=True)
class Lists:
    """What to block: hosts with all below them, words of page addresses, SHA-256 of images, flagged words of texts."""

    hosts: frozenset[str] = frozenset()
    address_words: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()

    def blocks(self, url: str, host: str) -> bool:
        """Whether a page's address is blocked: its host or a domain above it, or a word in the address."""
        labels = host.lower().rstrip(".").split(".")
        return (any(".".join(labels[i:]) in self.hosts for i in range(len(labels)))
                or any(word in url.lower() for word in self.address_words))


# A list is one entry a line; lines that begin with # and empty ones are passed over.
ListPaths = tuple[tuple[str, str], ...]                 # (field of Lists, path)


def load_lists(paths: ListPaths) -> Lists:
    """Reads the lists."""
    return Lists(**{field: frozenset(_entries(files.read(path))) for field, path in paths})


def list_digests(paths: ListPaths) -> dict[str, str]:
    """SHA-256 of each list."""
    return {field: hashlib.sha256(files.read(path)).hexdigest() for field, path in paths}


def _entries(data: bytes) -> list[str]:
    lines = (line.strip().lower() for line in data.decode("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]
