"""The decisions over all pages, one by one."""

import random

import pytest

pytest.importorskip("fastwarc", reason="needs the extra [web] or [pipelines]")
pytest.importorskip("apache_beam", reason="needs the extra [pipelines]")

from data_pipelines.web_pages import selection  # noqa: E402
from data_pipelines.web_pages.extract import ImageEntry, PageEntry, Place  # noqa: E402
from data_pipelines.web_pages.rules import Lists, Rules  # noqa: E402
from data_pipelines.web_pages.selection import Choice, Offer  # noqa: E402

pytestmark = pytest.mark.quick


def place(k: int) -> Place:
    return Place("blob", k, 1, 0)


def page(date: str, k: int = 0) -> PageEntry:
    return PageEntry("page", date, place(k), b"s", b"b", ["x", "y"])


def offers(*faults: str, same: tuple[int, ...] = ()) -> list[Offer]:
    return [Offer(i, place(i), "sha0" if i in same else f"sha{i}", fault) for i, fault in enumerate(faults)]


def choose(found: list[Offer], **rules):
    results = list(selection.choose_images(("page", {"page": [page("1")], "offers": found}), Rules(**rules)))
    counts = [r[1:] for r in results if r[0] == "counts"]
    return [r for r in results if isinstance(r, Choice)], counts


def test_the_newest_fetch_of_an_address_stays_whatever_the_order():
    fetches = [page("2020-01-02", 1), page("2020-01-03", 2), page("2020-01-03", 3), page("2019-12-31", 4)]
    for _ in range(5):
        random.shuffle(fetches)
        best, *dropped = selection.newest_page(("page", fetches))
        assert best.place == place(3)
        assert dropped == [("counts", "pages", "same address, older")] * 3


def test_a_page_gets_the_newest_usable_image_of_an_address():
    found = [ImageEntry("x", "2020", place(1), "old", ""), ImageEntry("x", "2021", place(2), "new", ""),
             ImageEntry("x", "2022", place(3), "bad", "single colour")]
    for order in (found, found[::-1]):
        assert list(selection.offer([("p", 4)], order)) == [("p", Offer(4, place(2), "new", ""))]
    assert [o.fault for _, o in selection.offer([("p", 0)], found[2:])] == ["single colour"]
    assert [o.fault for _, o in selection.offer([("p", 0), ("q", 1)], [])] == ["not in the archive"] * 2


def test_an_image_on_too_many_pages_is_on_none():
    def faults(pages):
        return {o.fault for _, o in selection.limit_uses([(p, Offer(0, place(0), "sha", "")) for p in pages], 3)}
    assert faults("abc") == {""}
    assert faults("abcabc") == {""}         # three pages have it, twice each
    assert faults("abcd") == {"on too many pages"}


def test_images_of_a_page_are_whole_distinct_and_in_order():
    (choice,), counts = choose(offers("", "single colour", "", "", same=(0, 3))[::-1])
    assert choice.images == [(0, place(0)), (2, place(2))]
    assert sorted(counts) == [("image marks", "single colour"), ("image marks", "twice on the page"),
                              ("image marks", "usable"), ("image marks", "usable")]


def test_more_images_than_allowed_are_cut_or_drop_the_page():
    (choice,), counts = choose(offers("", "", ""), max_images=2)
    assert [i for i, _ in choice.images] == [0, 1] and ("image marks", "beyond max_images") in counts
    choices, counts = choose(offers("", "", ""), max_images=2, too_many="drop")
    assert not choices and ("pages", "too many images") in counts


def test_a_page_without_images_is_dropped():
    for found in ([], offers("not in the archive")):
        choices, counts = choose(found)
        assert not choices and counts[-1] == ("pages", "no usable image")


def test_half_of_the_pages_with_one_image_stay_for_ever():
    keys = [f"{k:032x}" for k in range(4000)]
    draws = [selection.draw(key) for key in keys]
    assert draws == [selection.draw(key) for key in keys] and all(0 <= d < 1 for d in draws)
    assert 0.47 < sum(d < 0.5 for d in draws) / len(draws) < 0.53
    one = [selection.decide((key, {"choice": [Choice(key, place(0), b"", b"", [(0, place(1))])], "loser": []}), Rules())
           for key in keys[:50]]
    kept = [any(isinstance(r, Choice) for r in results) for results in one]
    assert kept == [d < 0.5 for d in draws[:50]]


def test_a_near_duplicate_is_dropped_before_the_draw():
    choice = Choice("k", place(0), b"", b"", [(0, place(1))])
    assert list(selection.decide(("k", {"choice": [choice], "loser": [True]}), Rules())) == [
        ("counts", "pages", "near duplicate")]


def test_lists_block_hosts_with_all_below_them_and_words_in_addresses():
    lists = Lists(hosts=frozenset({"bad.example"}), address_words=frozenset({"casino"}))
    for host, url, blocked in (("bad.example", "", True), ("www.BAD.example.", "", True), ("notbad.example", "", False),
                               ("example", "", False), ("good.example", "http://good.example/Casino", True)):
        assert lists.blocks(url, host) is blocked


@pytest.mark.parametrize("bad", [dict(too_many="both"), dict(single_image_keep=1.5), dict(similarity=-1)])
def test_rules_that_cannot_be_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Rules(**bad)
