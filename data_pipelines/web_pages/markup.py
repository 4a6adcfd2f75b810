"""A page's HTML to its main text with the images where they stand in it.

Images are marked in the markup before boilerplate is removed, so that what remains is text and images in the order of
the page, and an image in a menu goes with the menu.
"""

import dataclasses
import re
import urllib.parse
from collections import Counter

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding
from resiliparse.parse.html import HTMLTree
from selectolax.lexbor import LexborHTMLParser, LexborNode

UNSOUND = "unsound markup"
MAX_DEPTH = 256             # the time to extract text grows with the square of the depth; browsers stop at 512
MAX_IMAGES = 2_000
_TOO_DEEP = " > ".join(["*"] * MAX_DEPTH)
_SAFE = "%/:=&?~#+!$,;'@()*[]|"          # what `normal` leaves as it is in paths and queries
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"      # noncharacters: no sound page has them
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_STRAY = re.compile("[\ufdd0\ufdd1\x00]")
_LAZY = ("data-src", "data-original", "data-lazy-src", "data-lazy", "data-url", "data-image")
_LAZY_SETS = ("srcset", "data-srcset", "data-lazy-srcset")
# What makes parsers slow: their work grows with the square of a tag's attributes, and of the formatting elements, all
# different and never closed, that they must open again in every paragraph.
MAX_ATTRIBUTES, MAX_UNCLOSED = 1_000, 128
_DATA_URL = re.compile(r"data:[^\s\"'<>]{200,}")
_LONG_TAG = re.compile(r"<[a-zA-Z][^<>]{4000,}")
_SIZE = re.compile(r"\d{1,9}(\.\d{1,9})?[wx]")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_FORMATTING = re.compile(r"<((?:b|big|code|em|font|i|s|small|strike|strong|tt|u)\b[^<>]{0,200})", re.IGNORECASE)
_CLOSING = re.compile(r"</(?:b|big|code|em|font|i|s|small|strike|strong|tt|u)\b", re.IGNORECASE)


class PageError(ValueError):
    """A page cannot be used; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Page:
    """Text and images of a page in order.

    Attributes:
        segments: str for text, int for an image: its index in `images`.
        images: absolute http(s) addresses, each once.
    """

    segments: tuple[str | int, ...]
    images: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(s for s in self.segments if isinstance(s, str))


def decode(body: bytes, charset: str | None = None) -> str:
    """Bytes of a page to text; what the page says of its encoding is believed only if it is not plainly UTF-8."""
    if not body.isascii():
        try:
            return body.decode("utf-8-sig")
        except UnicodeDecodeError:
            pass
    for encoding in (charset, detect_encoding(body, from_html_meta=True), "windows-1252"):
        try:
            text = bytes_to_str(body, encoding, errors="replace") if encoding else ""
        except (LookupError, ValueError):
            continue
        if text:
            return text.encode("utf-8", "replace").decode()     # without lone surrogates
    return ""


def read_page(html: str, url: str, counts: Counter[str]) -> Page:
    """Main text and images of a page, in order.

    Args:
        html: decoded.
        url: of the page; image addresses are relative to it, or to its <base>.
        counts: counts images without a usable address by reason.

    Raises:
        PageError: if the markup is such that it would take too long.
    """
    html = _DATA_URL.sub("data:,", _STRAY.sub("", html))
    if _is_unsound(html):
        raise PageError(UNSOUND)
    tree = LexborHTMLParser(html)
    base = tree.css_first("base[href]")
    base = _absolute(base.attributes.get("href") or "", url) if base is not None else None
    addresses: list[str | None] = []
    for node in tree.css("img")[:MAX_IMAGES]:
        node.attrs["alt"] = f"{_OPEN}{len(addresses)}{_CLOSE}"
        addresses.append(address(node, base or url))
    text = extract_plain_text(tree.html or "", main_content=True, alt_texts=True, list_bullets=False)
    return _assemble(text, addresses, counts)


def address(node: LexborNode, base: str) -> str | None:
    """Where an <img> really comes from: lazy attributes first, then the widest of srcset and <picture>, then src.

    Returns:
        An absolute http or https address, or None.
    """
    given = node.attributes
    found = [given.get(name) for name in _LAZY]
    found += [widest(given.get(name) or "") for name in _LAZY_SETS]
    if node.parent is not None and node.parent.tag == "picture":
        found += [widest(s.attributes.get(name) or "") for s in node.parent.css("source") for name in _LAZY_SETS]
    found += [given.get("src"), _noscript(node)]
    return next((a for f in found if f and (a := _absolute(f, base))), None)


def widest(srcset: str) -> str:
    """The address with the largest width or density of a srcset, the first if several have it; "" if there is none."""
    best, tokens = (-1.0, ""), srcset.split()[::-1]
    while tokens:
        address, size = tokens.pop(), 1.0
        if not address.endswith(",") and tokens:
            descriptor, _, rest = tokens.pop().partition(",")
            if rest:
                tokens.append(rest)
            size = float(descriptor[:-1]) if _SIZE.fullmatch(descriptor) else 0.0
        if size > best[0] and address.strip(","):
            best = (size, address.strip(","))
    return best[1]


def _noscript(node: LexborNode) -> str | None:
    """The address in a <noscript> right behind a lazy image, as many scripts leave it."""
    follower = node.next
    while follower is not None and follower.tag == "-text" and not (follower.text() or "").strip():
        follower = follower.next
    if follower is None or follower.tag != "noscript":
        return None
    inner = LexborHTMLParser(follower.inner_html or follower.text() or "").css_first("img[src]")
    return inner.attributes.get("src") if inner is not None else None


def normal(url: str) -> str | None:
    """An http or https address the way browsers ask for it, without fragment; None if it is none."""
    try:
        parts = urllib.parse.urlsplit(url.strip())
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
        if port and port != {"http": 80, "https": 443}.get(parts.scheme):
            host = f"{host}:{port}"
        whole = urllib.parse.urlunsplit((parts.scheme, host, urllib.parse.quote(parts.path or "/", _SAFE),
                                         urllib.parse.quote(parts.query, _SAFE), ""))
    except ValueError:
        return None
    return whole if parts.scheme in ("http", "https") and parts.hostname and len(whole) <= 2048 else None


def _absolute(address: str, base: str) -> str | None:
    try:
        return normal(urllib.parse.urljoin(base, address.strip()))
    except ValueError:
        return None


def _is_unsound(html: str) -> bool:
    """Whether reading a page could take far longer than its size says."""
    if any(len(_QUOTED.sub("", tag[0]).split()) > MAX_ATTRIBUTES for tag in _LONG_TAG.finditer(html)):
        return True
    opened = _FORMATTING.findall(html)
    if len(opened) - len(_CLOSING.findall(html)) > MAX_UNCLOSED and len(set(opened)) > MAX_UNCLOSED:
        return True
    return HTMLTree.parse(html).document.query_selector(_TOO_DEEP) is not None


def _assemble(text: str, addresses: list[str | None], counts: Counter[str]) -> Page:
    segments, images, seen = [], {}, set()
    for i, piece in enumerate(_MARK.split(text)):
        if i % 2 == 0:
            lines = (line.rstrip() for line in _STRAY.sub("", piece).split("\n"))
            if piece := "\n".join(line for line in lines if line).strip():
                segments.append(piece)
        elif (k := int(piece[:9])) < len(addresses) and k not in seen:     # page text can spell marks; each counts once
            seen.add(k)
            counts["on the page, outside boilerplate"] += 1
            if addresses[k] is None:
                counts["no usable address"] += 1
            else:
                segments.append(images.setdefault(addresses[k], len(images)))
    counts["in boilerplate"] += len(addresses) - len(seen)
    return Page(tuple(segments), tuple(images))
