import pytest

from mmjax.evals.words import words

# What Stanford's PTBTokenizer and the dropped marks of COCO's caption evaluation give (pycocoevalcap 1.2).
TREEBANK = {
    "A man riding a wave on top of a surfboard.": "a man riding a wave on top of a surfboard",
    "The dog's wet, isn't it?": "the dog 's wet is n't it",
    "Two people -- one old, one young -- can't swim!": "two people one old one young ca n't swim",
    "A black-and-white t-shirt costs $3.50.": "a black-and-white t-shirt costs $ 3.50",
    "It is 10:30 a.m. in the U.S.": "it is 10:30 a.m. in the u.s.",
    "We're gonna go; they've been, I'm here, he'd run & she'll walk.":
        "we 're gon na go they 've been i 'm here he 'd run & she 'll walk",
    'A "stop" sign at 5th and 1,000 Main.': "a stop sign at 5th and 1,000 main",
    "cannot see 50% of the cats' tails": "can not see 50 % of the cats tails",
    "The children's toys... are red/green.": "the children 's toys are red/green",
}


@pytest.mark.quick
@pytest.mark.parametrize("text", TREEBANK)
def test_words_are_those_of_the_treebank_tokenizer(text):
    assert words(text) == TREEBANK[text].split()


def test_typographic_marks_count_as_plain_ones():
    assert words("\u201cIt\u2019s\u201d \u2014 the caf\u00e9\u2026 (new)") == ["it", "'s", "the", "caf\u00e9", "new"]
