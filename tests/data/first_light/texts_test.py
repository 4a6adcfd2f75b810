import re

import numpy as np
import pytest

from mmjax.data.first_light import digits, texts
from mmjax.data.first_light.words import WORDS


def many(make, count=100):
    rng = np.random.default_rng(0)
    return [make(rng) for _ in range(count)]


def test_numerals_are_spelled_right():
    for text in many(texts.numerals):
        for line in text.split("\n"):
            number, word = re.fullmatch(r"(\d)\. Output: (\w+)", line).groups()
            assert digits.NAMES.index(word) == int(number)


def test_counting_goes_in_one_step():
    for text in many(texts.counting):
        numbers = [digits.NAMES.index(line.removeprefix("Output: ")) for line in text.split("\n")]
        steps = {(b - a) % 10 for a, b in zip(numbers, numbers[1:], strict=False)}
        assert len(numbers) >= 3 and len(steps) == 1 and steps <= {1, 2, 8, 9}


def test_repeating_repeats():
    for text in many(texts.repeating):
        lines = text.split("\n")
        assert any(lines == (lines[:n] * len(lines))[:len(lines)] for n in (1, 2, 3))


@pytest.mark.quick
def test_bindings_hold_on_a_page_and_change_between_pages():
    every = {}
    for text in many(texts.bindings, 300):
        pairs = re.findall(r"(?:^|\n|(?<=\. ))([\w ]+?)(?:\. Output:| is) (\w+)", text)
        bound = dict(pairs)
        assert 2 <= len(bound) == len(set(bound.values())) <= 4 and set(bound.values()) <= set(WORDS)
        assert all(bound[thing] == name for thing, name in pairs)
        assert pairs[-1] in pairs[:-1]
        assert len(pairs) == text.count("Output:") + text.count(" is ")
        for thing, name in bound.items():
            every.setdefault(thing, set()).add(name)
    assert len(every["7"]) > 5


def test_described_scenes_name_the_answer_or_imply_it():
    for text in many(texts.described_scenes):
        for line in text.split("\n"):
            caption, prompt, answer = re.fullmatch(r"(.+?)\. (Output|Question: .+? Answer): (.+)", line).groups()
            if prompt == "Output":
                assert answer == caption
            elif "shape" in prompt or "colour" in prompt or "size" in prompt:
                assert answer in caption.split()
            elif "how many" in prompt:
                shape = prompt.split("many ")[1].split("?")[0]
                assert re.search(rf"{answer} \w+ {shape if answer != 'one' else ''}", caption)


def test_documents_are_one_text_each_and_of_every_kind():
    made = list(texts.documents(400, np.random.default_rng(0), "text"))
    assert all(len(d.segments) == 1 and d.segments[0].weight == 1 for d in made)
    whole = "\n".join(d.segments[0].text for d in made)
    for form in ("Output: seven", "7. Output: seven", " is ", "Question: what shape? Answer:", "photograph? Answer:"):
        assert form in whole
    assert len({d.key for d in made}) == 400
