"""Main text and images of pages, in order."""

import time
from collections import Counter

import pytest

pytest.importorskip("fastwarc", reason="needs the extra [web] or [pipelines]")

from data_pipelines.web_pages import markup  # noqa: E402
from data_pipelines.web_pages.sample import forms  # noqa: E402

pytestmark = pytest.mark.quick
URL = "http://pages.example/folder/page.html"
TEXTS = ["The first text stands here.", "A second one follows.", "And the third is the last of them."]


def read(html: str) -> tuple[markup.Page, Counter]:
    counts = Counter()
    return markup.read_page(html, URL, counts), counts


def flat(page: markup.Page) -> list[str]:
    return [" ".join(s.split()) if isinstance(s, str) else page.images[s] for s in page.segments]


@pytest.mark.parametrize("form", range(forms.FORMS))
@pytest.mark.parametrize("image_form", range(forms.IMAGE_FORMS))
def test_every_form_of_markup_gives_text_and_images_in_order(form, image_form):
    images = ["http://pages.example/i/a.jpg?w=1&h=2", "http://cdn.example/b.png"]
    parts = [("text", TEXTS[0]), ("image", images[0]), ("text", TEXTS[1]), ("image", images[1]), ("text", TEXTS[2])]
    shift = (image_form - form) // forms.FORMS * forms.FORMS + form       # the image form is this number plus its place
    page, counts = read(forms.page("A title", parts, ["Home", "Contact"], "en", URL, shift))
    assert flat(page) == [value for _, value in parts]
    assert counts == {"on the page, outside boilerplate": 2, "in boilerplate": counts["in boilerplate"]}
    assert counts["in boilerplate"] >= 2


@pytest.mark.parametrize("tag, wanted", [
    ('<img src="a.jpg">', "http://pages.example/folder/a.jpg"),
    ('<img src="//cdn.example/a.jpg#x">', "http://cdn.example/a.jpg"),
    ('<img src="data:image/gif;base64,R0==" data-src="/b.jpg">', "http://pages.example/b.jpg"),
    ('<img src="s.jpg" srcset="m.jpg 640w, l.jpg 1280w, s.jpg 160w">', "http://pages.example/folder/l.jpg"),
    ('<img src="s.jpg" data-srcset="m.jpg, l.jpg 2x">', "http://pages.example/folder/l.jpg"),
    ('<img src="s.jpg" srcset="a,b.jpg 1x, c,d.jpg 3x">', "http://pages.example/folder/c,d.jpg"),
    ('<picture><source srcset="p.webp 2x"><img src="s.jpg"></picture>', "http://pages.example/folder/p.webp"),
    ('<img class=lazy> <noscript><img src="n.jpg"></noscript>', "http://pages.example/folder/n.jpg"),
    ('<img src="/a b/ü.jpg?q=ü&amp;x=%20">', "http://pages.example/a%20b/%C3%BC.jpg?q=%C3%BC&x=%20"),
    ('<img src="HTTP://Bücher.Example:80#top">', "http://xn--bcher-kva.example/"),
    ('<img src="https://a.example:8443/x.png">', "https://a.example:8443/x.png"),
    ('<img srcset="a.jpg 1x,b.jpg 2x">', "http://pages.example/folder/b.jpg"),
    ('<img srcset=", ,, 7 9w">', "http://pages.example/folder/7"),
    ('<img src="javascript:alert(1)">', None), ('<img src="">', None), ("<img>", None),
    ('<img src="http://[bad/">', None),
    ('<img src="http://a:port/x.png">', None), ('<img src="ftp://a/x.png">', None),
])
def test_the_address_of_an_image(tag, wanted):
    page, counts = read(f"<p>{TEXTS[0]} {tag} {TEXTS[1]}</p>")
    assert page.images == ((wanted,) if wanted else ())
    assert counts["no usable address"] == (wanted is None)


def test_a_base_changes_what_addresses_are_relative_to():
    page, _ = read(f'<base href="http://other.example/x/"><p>{TEXTS[0]}<img src="a.jpg">')
    assert page.images == ("http://other.example/x/a.jpg",)


def test_an_image_twice_has_one_address_and_two_places():
    page, _ = read(f'<p>{TEXTS[0]}<img src="a.jpg">{TEXTS[1]}<img src="a.jpg">')
    assert page.segments == (TEXTS[0], 0, TEXTS[1], 0) and len(page.images) == 1


def test_text_cannot_spell_an_image():
    page, _ = read(f"<p>\ufdd00\ufdd1 {TEXTS[0]} &#xFDD0;0&#xFDD1; &#xFDD0;7&#xFDD1; &#xFDD0;x <img src=a.jpg></p>")
    assert sum(isinstance(s, int) for s in page.segments) == 1
    assert "\ufdd0" not in page.text and "\ufdd1" not in page.text


@pytest.mark.parametrize("html", [
    "<div>" * 50_000 + TEXTS[0],
    "<p " + " ".join(f"a{i}=1" for i in range(100_000)) + f">{TEXTS[0]}",
    "".join(f"<p><b id={i}>text" for i in range(10_000)),
], ids=["deep", "attributes", "unclosed"])
def test_markup_that_would_take_long_is_refused_at_once(html):
    start = time.monotonic()
    with pytest.raises(markup.PageError, match="unsound markup"):
        read(html)
    assert time.monotonic() - start < 5


def test_long_values_and_many_equal_unclosed_elements_are_sound():
    value = "some words, " * 2000
    inline = f'<img src="data:image/png;base64,{"A" * 10**6}">'
    page, _ = read(f'<p data-props="{value}">{TEXTS[0]}{"<p><b>bold" * 300}{inline}')
    assert page.text.startswith(TEXTS[0])


@pytest.mark.parametrize("encoding, header, meta", [
    ("utf-8", None, ""), ("utf-8", "iso-8859-1", ""), ("windows-1252", "windows-1252", ""), ("latin-1", "latin-1", ""),
    ("windows-1252", None, '<meta charset="windows-1252">'), ("utf-16", "utf-16", ""), ("utf-8-sig", None, ""),
    ("utf-8", "no-such-charset", ""), ("windows-1252", "no-such-charset", '<meta charset="windows-1252">'),
])
def test_bytes_become_the_text_they_were(encoding, header, meta):
    text = f"{meta}<p>Crème brûlée à la façon de Zoë, déjà vu. " * 5
    assert markup.decode(text.encode(encoding), header) == text


def test_bytes_of_no_encoding_become_some_text():
    for body in (b"", b"\xff\xfe\xff", bytes(range(256)), b"\x00" * 50, "日本語".encode("shift_jis")):
        markup.decode(body, "utf-8").encode("utf-8")


def test_japanese_is_read_by_what_the_page_says():
    text = '<meta charset="Shift_JIS">日本語のページです。'
    assert markup.decode(text.encode("shift_jis"), None) == text


def test_lines_keep_their_beginnings_and_empty_ones_go():
    page, _ = read(f"<p>{TEXTS[0]}</p><pre>if x:\n    y\n\n\n    z   \n</pre>")
    assert page.text == f"{TEXTS[0]}\nif x:\n    y\n    z"
