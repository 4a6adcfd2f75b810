import io
import json
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from absl import logging
from PIL import Image as pil

from mmjax.batch import Batch
from mmjax.data.config import DataSetConfig, LoaderConfig, Source
from mmjax.data.counters import TooManySkipped
from mmjax.data.documents import Document, Image, Text, write_documents
from mmjax.data.images import ImageSpec
from mmjax.data.loader import Loader
from mmjax.data.sources.array_record import ArrayRecordSource


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


def config(folder, workers=0, streams=0, **pages):
    """Small rows of two sets; one page in ten is damaged."""
    settings = dict(batch_size=2, seq_len=64, images_per_row=3, image=ImageSpec(size=8),
                    template="flamingo", template_options=dict(p_next=0.5, prepend_space=0.5), too_long="window")
    text = DataSetConfig((Source(f"{folder}/short.array_record", 2.0), Source(f"{folder}/long.array_record")), 2, 96)
    sets = dict(pages=DataSetConfig((Source(f"{folder}/pages"),), **settings | pages), text=text)
    return LoaderConfig(sets, workers=workers, streams=streams, max_skipped=0.1)


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


def test_neither_threads_nor_workers_are_part_of_the_order(folder):
    """And a state goes from one number of them to another, in place too, with batches of the old position in flight."""
    states, digests, counters = [], [], []
    with Loader(replace(config(folder), threads=0)) as loader:
        for _ in range(13):
            states.append(loader.get_state())
            digests.append(digest(next(loader)))
            counters.append(loader.counters)
    for workers, threads in ((2, 1), (0, 3)):
        with Loader(replace(config(folder, workers), threads=threads)) as loader:
            for start in (0, 7, 3):
                loader.set_state(states[start])
                assert [digest(next(loader)) for _ in range(5)] == digests[start:start + 5]
                assert loader.counters == counters[start + 4] and loader.get_state() == states[start + 5]


def test_a_script_without_a_main_guard_resumes_with_workers(folder, tmp_path):
    with Loader(config(folder)) as loader:
        next(loader)
        (tmp_path / "state").write_bytes(loader.get_state())
        rest = [digest(next(loader)) for _ in range(3)]
    script = tmp_path / "resume.py"
    script.write_text(f"""
import importlib.util
spec = importlib.util.spec_from_file_location("loader_test", {str(Path(__file__))!r})
test = importlib.util.module_from_spec(spec)
spec.loader.exec_module(test)
with test.Loader(test.config({str(folder)!r}, workers=1)) as loader:
    loader.set_state(open({str(tmp_path / "state")!r}, "rb").read())
    print([test.digest(next(loader)) for _ in range(3)])
""")
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, timeout=120,
                          env={"PYTHONPATH": str(root), "PATH": ""})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == rest


@pytest.mark.quick
def test_hosts_share_four_streams_and_pass_them_on(folder):
    """Stopped and continued by 1, 2 and 4 hosts in turn, all batches are those of one host that never stopped."""
    whole = replace(config(folder, streams=4), sets={name: replace(c, batch_size=4)
                                                     for name, c in config(folder).sets.items()})

    def run(hosts, states, steps):
        batches, after = [], []
        for host in range(hosts):
            with Loader(whole, host, hosts) as loader:
                if states:
                    loader.set_state(*states)
                batches.append([next(loader) for _ in range(steps)])
                after.append(loader.get_state())
        return [{name: Batch(*map(np.concatenate, zip(*(b[name] for b in step), strict=True))) for name in whole.sets}
                for step in zip(*batches, strict=True)], after

    want, (end,) = run(1, (), 9)
    got, states = [], ()
    for hosts in (1, 4, 2, 1, 2, 4, 1):
        steps = 2 if hosts == 2 else 1
        batches, states = run(hosts, states, steps)
        got += batches
    assert list(map(digest, got)) == list(map(digest, want)) and states == [end]


def test_a_state_of_other_settings_is_refused_and_names_them(folder):
    with Loader(config(folder)) as loader:
        state = loader.get_state()
    changed = {
        "seed was 0, is 1": replace(config(folder), seed=1),
        "sets.pages.batch_size was 2, is 4": config(folder, batch_size=4),
        "tokenizer was ": replace(config(folder), specials=("<s>", "</s>", "<EOC>", "<image>")),
        "sets.pages.template_options.p_next was 0.5, is 0.25": config(folder, template_options=dict(p_next=0.25)),
        "sets.pages.image.resize was 'bicubic', is 'box'": config(folder, image=ImageSpec(size=8, resize="box")),
        "sets.pages.packing_buffer was 256, is 4": config(folder, packing_buffer=4),
        "sets.pages.sources.0.files was .*p.array_record.*, is .*short.array_record": replace(config(folder), sets={
            **config(folder).sets, "pages": replace(config(folder).sets["pages"],
                                                    sources=(Source(f"{folder}/short.array_record"),))}),
    }
    for message, other in changed.items():
        with Loader(other) as loader, pytest.raises(ValueError, match=message):
            loader.set_state(state)
    with Loader(config(folder)) as loader:
        for bad in (b"", b"{}", b"[1]", state[:50]):
            with pytest.raises(ValueError, match="not the state of a Loader"):
                loader.set_state(bad)


def test_a_refusal_says_what_going_on_would_lose(folder):
    with Loader(config(folder)) as loader:
        while loader.counters["pages"]["pages"]["records"] < 10:
            next(loader)
        read, state = loader.counters["pages"]["pages"]["records"], loader.get_state()
    lost = round(read * (30 - read) / 30)
    with Loader(config(folder), 1, 2) as loader, pytest.raises(
            ValueError, match=f"streams was 1, is 2. .* lose, and read twice, .*: pages source 0: {lost} of 30, text"):
        loader.set_state(state)
    with pytest.raises(ValueError, match="streams=4 must be a multiple of the 3 processes .* Use 1, 2, 4 processes"):
        Loader(config(folder, streams=4), 0, 3)


@pytest.mark.quick
def test_a_replaced_shard_of_the_same_size_is_noticed(folder, tmp_path):
    for name in "ab":
        write_documents(tmp_path / name / "x.array_record", [Document((Text(f"{name} {i}"),)) for i in range(9)])
    sets = [LoaderConfig({"text": DataSetConfig((Source(f"{tmp_path}/{name}"),), 2, 16)}) for name in "ab"]
    with Loader(sets[0]) as a, Loader(sets[1]) as b, pytest.raises(ValueError, match=r"sets.text.sources.0.files was"):
        b.set_state(a.get_state())


@pytest.mark.quick
def test_weights_may_change_after_a_checkpoint(folder, monkeypatch):
    """The log says so, nothing is lost or read twice, and the new shares hold."""
    said = []
    monkeypatch.setattr(logging, "info", lambda text, *args: said.append(text % args))

    def text(weights):
        sources = (Source(f"{folder}/{n}.array_record", w) for n, w in zip(("short", "long"), weights, strict=True))
        return LoaderConfig({"text": DataSetConfig(tuple(sources), 2, 96)})

    with Loader(text((2, 1))) as loader:
        next(loader)
        state, before = loader.get_state(), loader.counters["text"]
    with Loader(text((1, 3))) as loader:
        loader.set_state(state)
        for _ in range(20):
            next(loader)
        after = loader.counters["text"]
    assert said == ["data set text: weights were [2, 1], are [1, 3] from here on"]
    short, long = (after[n]["records"] - before[n]["records"] for n in ("short", "long"))
    assert short + long > 100 and abs(short / (short + long) - 0.25) < 0.1      # the first had been drawn before


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
        while loader.counters["pages"]["pages"]["records"] < 75:
            next(loader)
        counters = loader.counters["pages"]["pages"]
    skipped = counters["skipped"]
    assert set(skipped) == {"image truncated or damaged", "not a JPEG, PNG, WebP or GIF image"}
    assert all(2 <= n <= 4 for n in skipped.values()) and 2 <= counters["truncated"] <= 4
    assert sorted(said) == [
        f"data set pages: skipped {folder}/pages/p.array_record record 20: not a JPEG, PNG, WebP or GIF image",
        f"data set pages: skipped {folder}/pages/p.array_record record 7: image truncated or damaged"]


def test_counters_match_the_batches(folder):
    with Loader(config(folder)) as loader:
        tokens, images, documents = Counter(), 0, Counter()
        while not loader.counters["pages"]["pages"]["skipped"]:
            for name, batch in next(loader).items():
                documents[name] += batch.segment_ids.max(1).sum()
                tokens[name] += (batch.segment_ids > 0).sum()
                images += (batch.image_segment_ids > 0).sum()
        got, scalars = loader.counters, loader.metrics()
    assert got.keys() == {"pages", "text"} and got["text"].keys() == {"short", "long"}
    for name, sources in got.items():
        assert sum(c["records"] - sum(c["skipped"].values()) for c in sources.values()) == documents[name]
        assert sum(c["tokens"] for c in sources.values()) == tokens[name]
    assert got["pages"]["pages"]["images"] == images == scalars["data/pages/pages/images"]
    for reason, count in got["pages"]["pages"]["skipped"].items():
        assert scalars[f"data/pages/pages/skipped/{reason}"] == count > 0


def test_too_many_skipped_records_stop_the_run(folder):
    with Loader(replace(config(folder), max_skipped=0.003)) as loader, pytest.raises(
            TooManySkipped, match="'pages': 4 of .. records cannot be used, more than max_skipped=0.003 .*"
                                  "pages: .* x image truncated or damaged.*raise data.max_skipped"):
        for _ in range(40):
            next(loader)
    with pytest.raises(RuntimeError, match="is closed"):
        next(loader)


def test_nothing_to_learn_is_an_error_that_says_why(tmp_path):
    write_documents(tmp_path / "bad.array_record", [Document((Image(b"no"), Text("x")))] * 9)
    write_documents(tmp_path / "zero.array_record", [Document((Text("x", 0.0),))] * 9)
    bad = DataSetConfig((Source(f"{tmp_path}/bad.array_record"),), 2, 16, images_per_row=1, image=ImageSpec(size=4),
                        template="flamingo")
    zero = DataSetConfig((Source(f"{tmp_path}/zero.array_record"),), 2, 16)
    with Loader(LoaderConfig({"bad": bad}, max_skipped=1)) as loader, pytest.raises(
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


def test_documents_damaged_beyond_their_header_leave_their_row(folder):
    """Workers and threads agree: the row keeps its shape, its other documents and its numbering."""
    for workers in (0, 1):
        with Loader(config(folder, workers)) as loader:
            while "image truncated or damaged" not in loader.counters["pages"]["pages"]["skipped"]:
                batch = next(loader)["pages"]
        for row in range(2):
            used = batch.segment_ids[row] > 0
            assert used[:used.sum()].all() and batch.tokens[row, ~used].max(initial=0) == 0
            assert set(batch.segment_ids[row, used]) == set(range(1, batch.segment_ids[row].max() + 1))
            images = batch.image_segment_ids[row] > 0
            assert images[:images.sum()].all() and set(batch.image_index[row]) - {-1} == set(range(images.sum()))


def test_blocks_are_read_in_blocks_and_resumed_inside_of_them(folder, monkeypatch):
    monkeypatch.setattr(ArrayRecordSource, "blocks", lambda self: np.append(np.arange(4, len(self), 4), len(self)))
    with Loader(config(folder, streams=2), 1, 2) as loader:
        states, digests = [], []
        for _ in range(8):
            states.append(loader.get_state())
            digests.append(digest(next(loader)))
    with Loader(config(folder, streams=2), 1, 2) as loader:
        for i in (5, 2):
            loader.set_state(states[i])
            assert [digest(next(loader)) for _ in range(3)] == digests[i:i + 3]
