import dataclasses

import jax
import numpy as np
import pytest
import tiny_systems
from colours import LABELS, segments

from mmjax.data.documents import Document, Text
from mmjax.data.packing import encode_document, single_document_rows
from mmjax.data.templates import make_template
from mmjax.evals import EvalConfig
from mmjax.evals.classification import score_labels
from mmjax.evals.fewshot import read_examples
from mmjax.models import build

CONFIG = EvalConfig("colours", "classification", "data", batch_size=2)
LM = {"flamingo": tiny_systems.LLAMA, "kosmos1": tiny_systems.MAGNETO}
TEMPLATES = {"flamingo": make_template("flamingo"), "kosmos1": make_template("kosmos1", num_slots=4)}


@pytest.mark.parametrize("system", ["flamingo", "kosmos1"])
def test_scores_are_those_of_whole_pages_under_teacher_forcing(system, writer):
    """Prompts of different lengths, and fewer candidates for one of them, against a page with each label written."""
    lm = dataclasses.replace(LM[system], vocab_size=writer.tokenizer.vocab_size, max_positions=128)
    model = build(system, tiny_systems.config(system, lm=lm))
    params = tiny_systems.random_params(model)
    writer = dataclasses.replace(writer, template=TEMPLATES[system])
    shown = [(0, 1), (3, 2), (2, 0)]        # a shot and the query
    labels = [LABELS, LABELS[:2], LABELS]
    prompts = [writer.prompt(read_examples(Document(segments(shot))), read_examples(Document(segments(query)))[0])
               for shot, query in shown]
    pages = [encode_document(Document((*segments(shot), *segments(query)[:2], Text(label))), writer.template,
                             writer.tokenizer, writer.image)
             for (shot, query), own in zip(shown, labels, strict=True) for label in own]
    batch = single_document_rows(pages, 80, 2)
    logp = np.asarray(jax.jit(lambda *a: jax.nn.log_softmax(model.logits(*a)))(params, batch))
    starts = [len(prompt.encoded.tokens) - 1 for prompt, own in zip(prompts, labels, strict=True) for _ in own]
    want = [logp[row, np.arange(start, len(page["tokens"]) - 1), page["tokens"][start + 1:]].sum()
            for row, (start, page) in enumerate(zip(starts, pages, strict=True))]
    got = score_labels(model, params, writer, prompts, labels, CONFIG)
    assert got.shape == (3, 4) and np.isneginf(got[1, 2:]).all()
    np.testing.assert_allclose(got[np.isfinite(got)], want, rtol=2e-5)
