"""Recall against a loop, and zero-shot and retrieval of a real, if untrained, model."""

import numpy as np
import pytest
import tiny_systems

from mmjax.data.documents import write_documents
from mmjax.data.first_light import pages, pictures
from mmjax.data.images import ImageSpec
from mmjax.data.templates import make_template
from mmjax.data.tokenizer import byte_tokenizer
from mmjax.evals import run_evals
from mmjax.evals.check import check_evals
from mmjax.evals.matching import MatchingConfig, recall, unit
from mmjax.evals.prompts import Writer
from mmjax.layers import BlockConfig
from mmjax.models import ClipConfig, build
from mmjax.parts.text_tower import TextTowerConfig
from mmjax.parts.vision_head import VisionHeadConfig

COLOURS = ("red", "green", "blue")


@pytest.mark.quick
def test_recall_matches_a_loop():
    rng = np.random.default_rng(0)
    similarity = rng.integers(0, 4, (30, 9)).astype(float)          # many are equal
    right = rng.random((30, 9)) < 0.2
    right[np.arange(30), rng.integers(0, 9, 30)] = True
    for k in (1, 2, 5):
        hits = 0
        for scores, mine in zip(similarity, right, strict=True):
            order = sorted(range(9), key=lambda j: (-scores[j], mine[j]))       # the wrong first
            hits += any(mine[j] for j in order[:k])
        assert recall(similarity, right, k) == hits / 30
    assert recall(np.full((4, 4), np.nan), np.eye(4, dtype=bool), 1) == 0       # a diverged model finds nothing


@pytest.fixture
def data(tmp_path):
    def document(i):
        image = pictures.canvas(8, pictures.COLOURS[COLOURS[i % 3]])
        return pages.page([pages.Example(pictures.to_png(pictures.finish(image)), "", COLOURS[i % 3])], f"q/{i}")

    write_documents(tmp_path / "query.array_record", [document(i) for i in range(7)])
    return str(tmp_path)


def system():
    config = ClipConfig(vision=tiny_systems.VISION, head=VisionHeadConfig(16, 24),
                        text=TextTowerConfig(262, 20, 1, BlockConfig(16, 2, 40), pool="eos", eos_id=258, output_dim=24))
    model = build("clip", config)
    return model, tiny_systems.random_params(model), byte_tokenizer(), make_template("clip"), ImageSpec(size=8)


def test_zero_shot_and_retrieval_say_what_their_embeddings_do(data):
    model, params, *reads = system()
    templates = ("{}", "all {}")
    configs = (MatchingConfig("zero", "zero_shot", data, templates=templates, batch_size=4),
               MatchingConfig("find", "retrieval", data, ranks=(1, 2), batch_size=4))
    check_evals(configs, model, Writer(*reads))
    results = run_evals(configs, model, params, *reads, progress=False)
    assert set(results.metrics) == {"zero/chance", "zero/accuracy/0", "find/chance", "find/text_recall_1/0",
                                    "find/text_recall_2/0", "find/image_recall_1/0", "find/image_recall_2/0"}
    np.testing.assert_allclose(results.metrics["zero/chance"], 1 / 3)
    images, texts, ensemble = embeddings(model, params, Writer(*reads), templates)
    truth = np.arange(7) % 3
    labels = sorted(COLOURS)
    said = np.array([COLOURS.index(labels[j]) for j in (images @ ensemble.T).argmax(1)])
    assert results.metrics["zero/accuracy/0"] == np.mean(said == truth)
    assert [s.correct for s in results.samples["zero/0"]] == list(said == truth)
    nearest = (images @ texts.T).argmax(0)
    assert results.metrics["find/image_recall_1/0"] == np.mean(
        [COLOURS[truth[i]] == labels[j] for j, i in enumerate(nearest)])


def embeddings(model, params, writer, templates):
    """Images [7, C] and texts [3, C] (labels in order), plain and of templates, one at a time."""
    import mmjax.batch
    pixels = [np.full((1, 8, 8, 3), pictures.COLOURS[COLOURS[i % 3]], np.uint8) for i in range(7)]
    images = unit(np.concatenate([model.image_features(params, x) for x in pixels]))

    def text(words):
        ids = np.array([[256 + 1, *words.encode(), 258]], np.int32)
        ids[0, 0] = writer.tokenizer.id("<s>")
        row = np.ones_like(ids)
        return unit(model.text_features(params, mmjax.batch.Batch(ids, row, row, row, row, row, row, None, None)))[0]

    labels = sorted(COLOURS)
    plain = np.stack([text(label) for label in labels])
    ensemble = unit([np.mean([text(t.replace("{}", label)) for t in templates], axis=0) for label in labels])
    return images, plain, ensemble


@pytest.mark.quick
@pytest.mark.parametrize("fields, said", [
    (dict(templates=("a photo",)), r"template 'a photo' must have one \{\}"),
    (dict(ranks=(0,)), "ranks count from 1"),
    (dict(batch_size=0), "batch_size=0 at least 1"),
])
def test_wrong_settings_are_named(fields, said):
    with pytest.raises(ValueError, match=said):
        MatchingConfig("x", "zero_shot", "data", **fields)


def test_what_cannot_run_is_named(data):
    model, _, *reads = system()
    language = build("language", tiny_systems.config("language"))
    with pytest.raises(ValueError, match="the answer 'green' of 'q/1' is not among the labels"):
        check_evals((MatchingConfig("x", "zero_shot", data, labels=("red", "blue")),), model, Writer(*reads))
    with pytest.raises(ValueError, match="compares embeddings of images and texts, which this system does not have"):
        check_evals((MatchingConfig("x", "retrieval", data),), language, Writer(*reads))
    with pytest.raises(ValueError, match="eval x has texts of up to 27 tokens: texts of 27 tokens exceed"):
        check_evals((MatchingConfig("x", "zero_shot", data, templates=("a very long prompt: {}",)),), model,
                    Writer(*reads))
