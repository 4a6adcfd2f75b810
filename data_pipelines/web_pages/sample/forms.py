"""The same parts of a page in the forms that HTML of the web has: nested tables, lazy images, broken markup."""

import html
import urllib.parse
from collections.abc import Sequence

FORMS = 5
IMAGE_FORMS = 7
Part = tuple[str, str]          # ("text", sentence or paragraph) or ("image", absolute address)
_PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


def page(title: str, parts: Sequence[Part], menu: Sequence[str], language: str, url: str, form: int, charset: str = ""
         ) -> str:
    """A whole page: menu and footer with their own images, and the parts between them in one of FORMS forms."""
    links = "".join(f'<li><a href="/{i}">{html.escape(m)}</a></li>' for i, m in enumerate(menu))
    meta = f'<meta charset="{charset}">' if charset else ""
    pieces = [image(value, url, form + i) if kind == "image" else html.escape(value, quote=False)
              for i, (kind, value) in enumerate(parts)]
    body = _BODIES[form % FORMS](pieces, [kind for kind, _ in parts])
    return (f'<!DOCTYPE html><html lang="{language}"><head>{meta}<title>{html.escape(title)}</title>'
            "<style>p { margin: 1em } /* <p>not text</p> */</style><script>var x = '<p>not text</p>';</script></head>"
            f'<body><nav class="menu"><img src="/img/mark.png" alt="menu"><ul>{links}</ul></nav>{body}'
            f'<footer class="footer"><p>&copy; 2020 {html.escape(title)}</p><img src="/img/footer.png"><ul>{links}</ul>'
            "</footer></body></html>")


def image(address: str, page_url: str, form: int) -> str:
    """An <img> in one of IMAGE_FORMS forms."""
    parts = urllib.parse.urlsplit(address)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    same = parts.netloc == urllib.parse.urlsplit(page_url).netloc
    src = html.escape(path if same else f"//{parts.netloc}{path}")
    return (
        f'<img src="{src}" alt="a picture &amp; its words">',
        f'<img class="lazy" src="{_PIXEL}" data-src="{src}">',
        f'<img src="/img/small.jpg" srcset="/img/small.jpg 160w, {src} 1280w, /img/middle.jpg 640w">',
        f'<picture><source type="image/webp" srcset="/img/x1.webp 1x, {src} 2x"><img src="/img/x1.jpg"></picture>',
        f'<img src="{_PIXEL}" class="lazyload"><noscript><img src="{src}"></noscript>',
        f"<IMG WIDTH=300 SRC={html.escape(address)} ALT=>",
        f'<a href="/zoom"><img data-original="{src}" src=""></a>',
    )[form % IMAGE_FORMS]


def _article(pieces: list[str], kinds: list[str]) -> str:
    return "<main><article>" + "".join(f"<p>{p}</p>" if k == "text" else f"<figure>{p}</figure>"
                                       for p, k in zip(pieces, kinds, strict=True)) + "</article></main>"


def _tables(pieces: list[str], kinds: list[str]) -> str:
    inner = "".join(f"<tr><td width=20>&nbsp;</td><td>{p}</td></tr>" for p in pieces)
    return ("<table width=800><tr><td><table><tbody><tr><td colspan=2>"
            f"<table border=0>{inner}</table></td></tr></tbody></table></td></tr></table>")


def _broken(pieces: list[str], kinds: list[str]) -> str:
    """No <p> is closed, <b> and <i> cross, closing tags come from nowhere, a table has no rows."""
    out = ["<div id=content><div>"]
    for i, piece in enumerate(pieces):
        out.append(("<p>{}", "<p><b>{}<i></b></i></span>", "</table></font><p>{}</li>", "<p>{}<td></td>")[i % 4]
                   .format(piece))
    return "".join(out) + "</div></p></center>"


def _breaks(pieces: list[str], kinds: list[str]) -> str:
    return '<div class="post-body">' + "<br><br>\n".join(pieces) + "</div>"


def _sections(pieces: list[str], kinds: list[str]) -> str:
    return "<div><div>" + "".join(f"<section><div><span>{p}</span></div><!-- <p>not text</p> --></section>"
                                  for p in pieces) + "</div></div>"


_BODIES = (_article, _tables, _broken, _breaks, _sections)
