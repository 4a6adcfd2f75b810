import io
import json
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from absl import logging
from PIL import Image as pil

from mmjax.batch import Batch
from mmjax.data.config import DataSetConfig, LoaderConfig, Source
from mmjax.data.documents import Document, Image, Text, write_documents
from mmjax.data.images import ImageSpec
from mmjax.data.loader import Loader


def jpeg(rng, side=24):
    out = io.BytesIO()
    pil.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def page(rng, i):
    segments = [s for k in range(rng.integers(1, 4)) for s in (Image(jpeg(rng)), Text(f"page {i} part {k} "))]
    return Document(tuple(segments), f"page-{i}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pages with one image cut short, one that is no image and one text too long; and two kinds of text."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    pages = [page(rng, i) for i in range(30)]
    pages[7] = Document((Image(jpeg(rng)[:300]), Text("cut")), "cut")
    pages[20] = Document((Text("x"), Image(b"<html>"), Text("no image")), "html")
    pages[25] = Document((Image(jpeg(rng)), Text("long " * 40)), "long")
    write_documents(folder / "pages" / "p.array_record", pages)
    for name, count in (("short", 20), ("long", 11)):
        texts = (Document((Text(f"{name} {i} " * (3 if name == "long" else 1)),)) for i in range(count))
        write_documents(folder / f"{name}.array_record", texts)
    return folder


def config(folder, workers=0, **pages):
    settings = dict(images_per_row=3, image=ImageSpec(size=8), template="flamingo", packing_bins=3,
                    template_options=dict(p_next=0.5, prepend_space=0.5), too_long="window")
    text = DataSetConfig((Source(f"{folder}/short.array_record", 2.0), Source(f"{folder}/long.array_record")), 2, 96,
                         packing_bins=5)
    return LoaderConfig(dict(pages=DataSetConfig((Source(f"{folder}/pages"),), 2, 64, **settings | pages), text=text),
                        workers=workers)


def digest(batches):
    """One number that depends on every bit of some batches."""
    value = 0
    for batch in batches.values():
        for array in batch:
            value = zlib.crc32(np.ascontiguousarray(array).tobytes(), value)
            value = zlib.crc32(repr((array.shape, array.dtype)).encode(), value)
    return value


@pytest.mark.quick
def test_shapes_and_meaning(folder):
    with Loader(config(folder)) as loader:
        for _ in range(8):
            batches = next(loader)
            pages, text = batches["pages"], batches["text"]
            assert pages.images.shape == (2, 3, 1, 8, 8, 3) and pages.images.dtype == np.uint8
            assert text.images.shape[:3] == (2, 0, 1) and text.image_segment_ids.shape == (2, 0)
            assert pages.tokens.shape == pages.loss_weights.shape == (2, 64) and text.tokens.shape == (2, 96)
            for batch in (pages, text):
                assert isinstance(batch, Batch)
                assert all(a.dtype == np.int32 for name, a in batch._asdict().items()
                           if name not in ("images", "loss_weights"))
                assert (batch.loss_weights[batch.segment_ids == 0] == 0).all()
                assert (batch.image_index < max(1, batch.images.shape[1])).all()
            used = pages.image_index >= 0
            of_image = pages.image_segment_ids[np.nonzero(used)[0], pages.image_index[used]]
            np.testing.assert_array_equal(of_image, pages.segment_ids[used])
            assert (pages.images[pages.image_segment_ids == 0] == 0).all()
            assert (pages.images[pages.image_segment_ids > 0].std((1, 2, 3, 4)) > 0).all()


@pytest.mark.quick
def test_resume_is_exact_at_every_boundary(folder):
    steps = 14
    with Loader(config(folder)) as loader:
        states, digests, counters = [], [], []
        for _ in range(steps):
            states.append(loader.get_state())
            counters.append(json.dumps(loader.counters, sort_keys=True))
            digests.append(digest(next(loader)))
        end = json.dumps(loader.counters, sort_keys=True)
    assert len(set(digests)) == steps
    with Loader(config(folder)) as loader:
        for i in reversed(range(steps)):
            loader.set_state(states[i])
            assert json.dumps(loader.counters, sort_keys=True) == counters[i]
            assert [digest(next(loader)) for _ in range(min(3, steps - i))] == digests[i:i + 3], i
        loader.set_state(states[0])
        for _ in range(steps):
            next(loader)
        assert json.dumps(loader.counters, sort_keys=True) == end


def test_resume_is_exact_with_two_workers_and_in_a_new_process(folder, tmp_path):
    with Loader(config(folder, workers=2)) as loader:
        first = [digest(next(loader)) for _ in range(5)]
        state, counters = loader.get_state(), json.dumps(loader.counters)
        rest = [digest(next(loader)) for _ in range(5)]
        end = loader.counters
        loader.set_state(state)                         # in place, with batches of the old position in flight
        assert json.dumps(loader.counters) == counters
        assert [digest(next(loader)) for _ in range(2)] == rest[:2]
    assert len(set(first + rest)) == 10
    (tmp_path / "state").write_bytes(state)
    script = tmp_path / "resume.py"
    script.write_text(f"""
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("loader_test", {str(Path(__file__))!r})
test = importlib.util.module_from_spec(spec)
spec.loader.exec_module(test)
if __name__ == "__main__":
    with test.Loader(test.config({str(folder)!r}, workers=2)) as loader:
        loader.set_state(open({str(tmp_path / "state")!r}, "rb").read())
        print(json.dumps([[test.digest(next(loader)) for _ in range(5)], loader.counters]))
""")
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=root, timeout=120,
                          env={"PYTHONPATH": str(root), "PATH": "", "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [rest, end]


def test_a_state_of_other_settings_is_refused_and_names_them(folder):
    with Loader(config(folder)) as loader:
        state = loader.get_state()
    changed = {
        "seed was 0, is 1": replace(config(folder), seed=1),
        "workers was 0, is 1": config(folder, workers=1),
        "tokenizer was ": replace(config(folder), specials=("<s>", "</s>", "<EOC>", "<image>")),
        "sets.pages.template_options.p_next was 0.5, is 0.25": config(folder, template_options=dict(p_next=0.25)),
        "sets.pages.image.resize was 'bicubic', is 'box'": config(folder, image=ImageSpec(size=8, resize="box")),
        "sets.pages.packing_bins was 3, is 4": config(folder, packing_bins=4),
        "sets.pages.sources was .*p.array_record.*, is .*short.array_record": replace(config(folder), sets={
            **config(folder).sets, "pages": replace(config(folder).sets["pages"],
                                                    sources=(Source(f"{folder}/short.array_record"),))}),
    }
    for message, other in changed.items():
        with Loader(other) as loader, pytest.raises(ValueError, match=message):
            loader.set_state(state)
    with Loader(config(folder), process_index=1, process_count=2) as loader:
        with pytest.raises(ValueError, match="streams was 1, is 2"):
            loader.set_state(state)
        for bad in (b"", b"{}", b"[1]", state[:50]):
            with pytest.raises(ValueError, match="not the state of a Loader"):
                loader.set_state(bad)


def test_what_does_not_change_the_data_does_not_matter(folder, tmp_path):
    (tmp_path / "moved").symlink_to(folder)
    with Loader(config(folder)) as loader:
        next(loader)
        state, want = loader.get_state(), digest(next(loader))
    moved = config(tmp_path / "moved", loss_weight=0.2)
    with Loader(replace(moved, threads=0)) as loader:
        loader.set_state(state)
        assert digest(next(loader)) == want


def test_damaged_documents_are_counted_and_named_once(folder, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    with Loader(config(folder)) as loader:
        while loader.counters["pages"]["documents"] < 75:
            next(loader)
        counters = loader.counters["pages"]
    skipped = counters["skipped"]
    assert set(skipped) == {"image truncated or damaged", "not a JPEG, PNG, WebP or GIF image"}
    assert all(2 <= n <= 4 for n in skipped.values()) and 2 <= counters["truncated"] <= 4
    assert sorted(said) == [
        f"data set pages: skipped {folder}/pages/p.array_record record 20: not a JPEG, PNG, WebP or GIF image",
        f"data set pages: skipped {folder}/pages/p.array_record record 7: image truncated or damaged"]


def test_counters_match_the_batches(folder):
    with Loader(config(folder)) as loader:
        tokens = images = documents = 0
        for _ in range(6):
            batch = next(loader)["pages"]
            documents += batch.segment_ids.max(1).sum()
            tokens += (batch.segment_ids > 0).sum()
            images += (batch.image_segment_ids > 0).sum()
        got = loader.counters["pages"]
    assert (got["documents"], got["tokens"], got["images"]) == (documents, tokens, images)


def test_nothing_to_learn_is_an_error_that_says_why(tmp_path):
    write_documents(tmp_path / "bad.array_record", [Document((Image(b"no"), Text("x")))] * 9)
    write_documents(tmp_path / "zero.array_record", [Document((Text("x", 0.0),))] * 9)
    bad = DataSetConfig((Source(f"{tmp_path}/bad.array_record"),), 2, 16, images_per_row=1, image=ImageSpec(size=4),
                        template="flamingo")
    zero = DataSetConfig((Source(f"{tmp_path}/zero.array_record"),), 2, 16)
    with Loader(LoaderConfig({"bad": bad})) as loader, pytest.raises(
            ValueError, match="'bad': a batch of 2 rows has no token .*'not a JPEG, PNG, WebP or GIF image': "):
        next(loader)
    with Loader(LoaderConfig({"zero": zero})) as loader, pytest.raises(ValueError, match="'zero'.*'kept': "):
        next(loader)


def test_processes_split_the_batch(folder):
    whole = config(folder)
    parts = []
    for p in range(2):
        with Loader(whole, p, 2) as loader:
            parts.append([next(loader)["pages"] for _ in range(3)])
    assert all(b.tokens.shape == (1, 64) for part in parts for b in part)
    assert not any(np.array_equal(a.tokens, b.tokens) for a in parts[0] for b in parts[1])
    with pytest.raises(ValueError, match="'pages' batch_size=2 must be a multiple of the 3 processes"):
        Loader(whole, 0, 3)
    with pytest.raises(ValueError, match="process_index=2 must be from 0 to process_count-1=1"):
        Loader(whole, 2, 2)


def test_a_missing_folder_is_named(folder):
    with pytest.raises(FileNotFoundError, match="nowhere/pages does not exist"):
        Loader(config(f"{folder}/nowhere"))
