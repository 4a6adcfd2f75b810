import numpy as np
import pytest

from mmjax.batch import Batch
from mmjax.data import packing
from mmjax.data.documents import Document, Image, Text
from mmjax.data.filling import Filler
from mmjax.data.images import ImageSpec
from mmjax.data.templates import make_template
from mmjax.data.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()


def random_document(rng, segments=8, text=20):
    """Interleaved texts and images; every image has bytes of its own, so that it can be followed."""
    return Document(tuple(Image(rng.bytes(8)) if rng.random() < 0.4 else Text("x" * rng.integers(1, text))
                          for _ in range(rng.integers(1, segments))))


def random_features(rng, number, length, images, frames=2, side=1):
    """Features whose every token and pixel tells which document it is of and where it stood."""
    ids = np.arange(length, dtype=np.int32) + 1000 * number
    pixels = np.zeros((images, frames, side, side, 3), np.uint8)
    pixels[:] = (number * 7 + np.arange(images)).reshape(-1, 1, 1, 1, 1) % 256
    local = np.sort(rng.integers(-1, images, length)).astype(np.int32)
    return dict(tokens=ids, targets=ids + 1, loss_weights=rng.random(length, np.float32), image_index=local,
                slot_index=rng.integers(-1, 3, length).astype(np.int32), images=pixels)


def row_by_loop(row, seq_len, images_per_row, image_shape):
    """One row laid out position by position, the slow and obvious way."""
    out = Batch(*([[0] * seq_len] * 9))._replace(images=np.zeros((images_per_row, *image_shape), np.uint8))
    out = out._replace(**{n: [v] * seq_len for n, v in dict(
        tokens=0, targets=0, loss_weights=0.0, segment_ids=0, positions=0, image_index=-1, slot_index=-1).items()},
        image_segment_ids=[0] * images_per_row)
    t = i = 0
    for segment, f in enumerate(row):
        for p in range(len(f["tokens"])):
            for name in ("tokens", "targets", "loss_weights", "slot_index"):
                getattr(out, name)[t] = f[name][p]
            out.image_index[t] = f["image_index"][p] + i if f["image_index"][p] >= 0 else -1
            out.segment_ids[t], out.positions[t] = segment + 1, p
            t += 1
        for j in range(len(f["images"])):
            out.images[i + j], out.image_segment_ids[i + j] = f["images"][j], segment + 1
        i += len(f["images"])
    return out


def assert_rows_equal(got: Batch, r: int, want: Batch):
    for name in Batch._fields:
        np.testing.assert_array_equal(getattr(got, name)[r], getattr(want, name), err_msg=name)


def pack(documents, seq_len, images_per_row):
    """Rows of documents as the filler puts them together."""
    filler, rows = Filler(seq_len, images_per_row), []
    for n, f in enumerate(documents):
        filler.add(n, len(f["tokens"]), len(f["images"]))
    while row := filler.take_row():
        rows.append([documents[n] for n in row])
    return rows


@pytest.mark.quick
@pytest.mark.parametrize("template", [
    make_template("flamingo", p_next=0.5), make_template("kosmos1", num_slots=5), make_template("mm1", num_slots=5)])
@pytest.mark.parametrize("policy", ["truncate", "window"])
def test_a_cut_never_splits_an_image_or_moves_a_reference(template, policy):
    rng, cuts = np.random.default_rng(0), 0
    for _ in range(300):
        whole = template.encode(random_document(rng), TOKENIZER, rng)
        max_tokens, max_images = int(rng.integers(5, 60)), int(rng.integers(0, 4))
        unique = whole._replace(tokens=np.arange(len(whole.tokens), dtype=np.int32))
        try:
            got, cut = packing.fit(unique, max_tokens, max_images, policy, rng)
        except packing.TooLong:
            continue
        cuts += cut
        assert cut == (len(whole.tokens) > max_tokens or len(whole.visuals) > max_images)
        assert len(got.tokens) <= max_tokens and len(got.visuals) <= max_images
        old = got.tokens
        np.testing.assert_array_equal(np.diff(old), 1)
        if policy == "truncate":
            assert not len(old) or old[0] == 0
        np.testing.assert_array_equal(got.weights, whole.weights[old])
        np.testing.assert_array_equal(got.slot_index, whole.slot_index[old])
        for new, was in zip(got.image_index, whole.image_index[old], strict=True):
            if new >= 0:
                assert got.visuals[new] is whole.visuals[was]
            else:
                assert was < 0 or not any(v is whole.visuals[was] for v in got.visuals)
        for i in range(len(got.visuals)):
            start, stop = got.spans[i]
            assert 0 <= start < stop <= len(old)
        if template.num_slots:
            slots = got.slot_index[got.slot_index >= 0]
            np.testing.assert_array_equal(slots, np.tile(np.arange(5), len(got.visuals)))
    assert cuts > 100


def test_windows_reach_every_part_of_a_document():
    rng = np.random.default_rng(0)
    whole = make_template("flamingo").encode(Document((Text("x" * 98),)), TOKENIZER)
    starts = {int(packing.fit(whole._replace(tokens=np.arange(100, dtype=np.int32)), 90, 0, "window", rng)[0].tokens[0])
              for _ in range(500)}
    assert starts == set(range(11))


def test_drop_and_nothing_to_learn():
    whole = make_template("kosmos1", num_slots=5).encode(Document((Image(b"a"), Text("hello"))), TOKENIZER)
    with pytest.raises(packing.TooLong, match="14 tokens and 1 images; a document may have 10 and 1"):
        packing.fit(whole, 10, 1, "drop")
    with pytest.raises(packing.TooLong, match="nothing to learn"):
        packing.fit(whole, 8, 1, "truncate")
    assert packing.fit(whole, 14, 1, "drop") == (whole, False)


def test_to_features_shifts_within_the_document():
    encoded = make_template("flamingo").encode(Document((Text("a", 0.5), Image(b"i"), Text("bc"))), TOKENIZER)
    f = packing.to_features(encoded, np.zeros((1, 1, 4, 4, 3), np.uint8))
    n = len(encoded.tokens)
    for t in range(n - 1):
        assert f["targets"][t] == encoded.tokens[t + 1] and f["loss_weights"][t] == encoded.weights[t + 1]
    assert f["targets"][n - 1] == 0 and f["loss_weights"][n - 1] == 0
    is_image = f["targets"] == TOKENIZER.id("<image>")
    assert is_image.sum() == 1 and (f["loss_weights"][is_image] == 0).all()
    assert {k: f[k].dtype for k in f} == dict(tokens=np.int32, targets=np.int32, loss_weights=np.float32,
                                              image_index=np.int32, slot_index=np.int32, images=np.uint8)


@pytest.mark.quick
def test_pack_rows_matches_a_loop():
    rng = np.random.default_rng(0)
    rows = [[random_features(rng, 3 * r + k, int(rng.integers(1, 9)), int(rng.integers(0, 3)))
             for k in range(r % 3 + 1)] for r in range(5)]
    batch = packing.pack_rows(rows, 30, 7)
    for r, row in enumerate(rows):
        assert_rows_equal(batch, r, row_by_loop(row, 30, 7, (2, 1, 1, 3)))
    assert [x.dtype for x in batch] == [np.int32, np.int32, np.float32, *[np.int32] * 4, np.uint8, np.int32]
    single = packing.single_document_rows([row[0] for row in rows], 30, 2)
    for r, row in enumerate(rows):
        assert_rows_equal(single, r, row_by_loop(row[:1], 30, 2, (2, 1, 1, 3)))


def test_pack_rows_errors():
    rng = np.random.default_rng(0)
    f, g = random_features(rng, 0, 5, 1), random_features(rng, 1, 5, 1)
    with pytest.raises(ValueError, match="row 0 needs 10 tokens and 2 images or more; seq_len=9"):
        packing.pack_rows([[f, g]], 9, 2)
    with pytest.raises(ValueError, match="images_per_row=1"):
        packing.pack_rows([[f, g]], 10, 1)
    with pytest.raises(ValueError, match="one image shape"):
        packing.pack_rows([[f, random_features(rng, 1, 5, 1, side=2)]], 10, 2)


def test_no_target_crosses_documents_and_slots_are_complete():
    rng, template, documents = np.random.default_rng(0), make_template("kosmos1", num_slots=4), []
    for _ in range(120):
        page = Document((Text("first"), *random_document(rng).segments))
        encoded, _ = packing.fit(template.encode(page, TOKENIZER), 64, 3, "truncate")
        documents.append(packing.to_features(encoded, np.zeros((len(encoded.visuals), 1, 2, 2, 3), np.uint8)))
    batch = packing.pack_rows(pack(documents, 64, 4), 64, 4)
    image_blocks = 0
    for r in range(len(batch.tokens)):
        for t in range(64):
            last = t == 63 or batch.segment_ids[r, t + 1] != batch.segment_ids[r, t]
            if last:
                assert batch.loss_weights[r, t] == 0
            elif batch.segment_ids[r, t]:
                assert batch.targets[r, t] == batch.tokens[r, t + 1]
        for i in np.flatnonzero(batch.image_segment_ids[r]):
            here = np.flatnonzero((batch.image_index[r] == i) & (batch.slot_index[r] >= 0))
            assert batch.slot_index[r, here].tolist() == [0, 1, 2, 3] and (np.diff(here) == 1).all()
            assert (batch.segment_ids[r, here] == batch.image_segment_ids[r, i]).all()
            image_blocks += 1
    assert image_blocks == sum(len(d["images"]) for d in documents)


def test_encode_document_decodes_its_images():
    with pytest.raises(ValueError, match="not a JPEG"):
        packing.encode_document(Document((Image(b"no"),)), make_template("flamingo"), TOKENIZER, ImageSpec(size=4))
    text = Document((Text("ab"),))
    f = packing.encode_document(text, make_template("flamingo"), TOKENIZER, ImageSpec(size=4), frames=2, prompt=True)
    assert f["tokens"].tolist() == [TOKENIZER.id("<s>"), *b"ab"] and f["images"].shape == (0, 2, 4, 4, 3)


