import dataclasses

import numpy as np
import pytest
from colours import LABELS, segments

from mmjax.data.documents import Document, Image
from mmjax.data.templates import make_template
from mmjax.evals.fewshot import Example, read_examples


def example(label, shade=0):
    return read_examples(Document(segments(label, shade), f"{label}"))[0]


def spelled(writer, prompt):
    """The tokens with special ones by name."""
    names = {i: name for name, i in writer.tokenizer.special.items()}
    return "".join(names.get(i) or writer.tokenizer.decode([i]) for i in prompt.encoded.tokens.tolist())


SLOTS = "<image><image><image></image>"
TEMPLATES = {       # template, a prompt with one shot, one with two shots as text, what ends an answer
    "flamingo": (make_template("flamingo", p_next=0.5), "<s><image>Output: red<EOC><image>Output:",
                 "<s>Output: red<EOC>Output: blue<EOC><image>Output:", "<EOC>"),
    "kosmos1": (make_template("kosmos1", num_slots=2), f"<s>{SLOTS}Output: red{SLOTS}Output:",
                f"<s>Output: red\nOutput: blue\n{SLOTS}Output:", "</s>"),
}


@pytest.fixture(params=TEMPLATES)
def case(request, writer):
    template, *rest = TEMPLATES[request.param]
    return dataclasses.replace(writer, template=template), *rest


@pytest.mark.quick
def test_a_prompt_reads_as_written(case):
    writer, page, texts, end = case
    assert spelled(writer, writer.prompt([example(1)], example(2))) == page
    assert spelled(writer, writer.prompt([example(1), example(0)], example(2), as_text=True)) == texts
    assert writer.end_ids == (writer.tokenizer.id(end),)


def test_prompt_and_candidate_are_a_page_of_training(case):
    writer = case[0]
    page = Document(sum((segments(label) for label in (1, 0, 2)), ()))
    whole = writer.template.encode(page, writer.tokenizer)
    prompt = writer.prompt([example(1), example(0)], example(2))
    n = len(prompt.encoded.tokens)
    assert [*prompt.encoded.tokens, *writer.candidates(LABELS)[2]] == whole.tokens.tolist()
    for name in ("image_index", "slot_index"):
        np.testing.assert_array_equal(getattr(prompt.encoded, name), getattr(whole, name)[:n])
    assert writer.pixels(prompt.shown)[:, 0, 0, 0, 0].tolist() == [40, 0, 80]


def test_text_shots_refer_to_no_image(case):
    writer = case[0]
    prompt = writer.prompt([example(1), example(0)], example(2), as_text=True)
    alone = writer.prompt([], example(2))
    assert len(prompt.shown) == 1
    added = len(prompt.encoded.tokens) - len(alone.encoded.tokens)
    for name in ("image_index", "slot_index"):
        assert (getattr(prompt.encoded, name)[:added + 1] == -1).all()
        np.testing.assert_array_equal(getattr(prompt.encoded, name)[added + 1:], getattr(alone.encoded, name)[1:])


def test_batches_have_one_shape_and_every_prompt_once(writer):
    prompts = [writer.prompt([example(i % 4)] * (i % 2), example(i % 3), as_text=True) for i in range(5)]
    longest = max(len(p.encoded.tokens) for p in prompts)
    seen = []
    for where, batch in writer.batches(prompts, 3):
        assert batch.tokens.shape == (3, longest) and batch.images.shape[:2] == (3, 1)
        for row, prompt in zip(range(3), prompts[where], strict=False):
            n = len(prompt.encoded.tokens)
            assert batch.tokens[row, :n].tolist() == prompt.encoded.tokens.tolist()
            assert batch.segment_ids[row].sum() == n
            assert (batch.images[row, 0] == writer.pixels(prompt.shown)[0]).all()
        seen += range(where.start, where.stop)
    assert seen == list(range(5))
    assert (batch.tokens[2] == batch.tokens[1]).all()       # filled up with a prompt, not with an empty row


def test_the_control_changes_the_last_image_alone(writer):
    prompt = writer.prompt([example(1)], example(2))
    swapped = prompt.with_last_image(example(3))
    ((_, before),), ((_, after),) = (list(writer.batches([p], 1)) for p in (prompt, swapped))
    assert before.images[0, :, 0, 0, 0, 0].tolist() == [40, 80]
    assert after.images[0, :, 0, 0, 0, 0].tolist() == [40, 120]
    assert all((x == y).all() for x, y in zip(before._replace(images=0), after._replace(images=0), strict=True)
               if not isinstance(x, int))


def test_a_damaged_image_is_named(writer):
    with pytest.raises(ValueError, match="image of evaluation example 'query/7': image truncated or damaged"):
        writer.pixels([Example(Image(segments(0)[0].data[:45]), "Output:", (" a",), "query/7")])
