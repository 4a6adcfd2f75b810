import collections
import hashlib
import io

import numpy as np
import PIL.Image
import pytest

from mmjax.data.documents import Image, Text
from mmjax.data.first_light import build, manifest, pages
from mmjax.data.sources import open_source

TINY = build.FirstLightConfig(scenes=150, crops=40, pages=40, texts=50, queries=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first_light") / "data"
    build.build(folder, TINY, progress=False)
    return folder


def read(folder, name):
    return list(open_source("array_record", folder / f"{name}.array_record"))


def pixel_hashes(documents):
    images = {s.data for d in documents for s in d.segments if isinstance(s, Image)}
    return {hashlib.sha256(np.asarray(PIL.Image.open(io.BytesIO(i)).convert("RGB")).tobytes()).digest() for i in images}


@pytest.mark.quick
def test_no_held_out_picture_is_in_training(folder):
    train = set()
    for file in manifest.read_manifest(folder).records:
        if file.startswith("train/") or file.endswith("/support.array_record"):
            train |= pixel_hashes(open_source("array_record", folder / file))
    assert len(train) > 1397
    for task in build.TASKS:
        query = pixel_hashes(read(folder, f"{task}/query"))
        assert query and not query & train, task


def test_every_scan_is_there_once(folder):
    train, query = read(folder, "train/digits_pairs"), read(folder, "digits/query")
    assert len(pixel_hashes(train)) == len(train) == 1397
    assert len(pixel_hashes(query)) == 30  # all 400 at the default size


def test_manifest_counts_every_file(folder):
    made = manifest.read_manifest(folder)
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert files == {*made.records, manifest.FILE}
    assert all(len(open_source("array_record", folder / file)) == count for file, count in made.records.items())
    assert made.config["seed"] == 0 and made.name == "first_light"


def test_same_bytes_twice_and_others_for_another_seed(folder, tmp_path):
    again = build.build(tmp_path / "again", TINY, progress=False)
    assert again == manifest.read_manifest(folder)
    other = build.build(tmp_path / "other", build.FirstLightConfig(
        scenes=10, crops=10, pages=5, texts=5, queries=5, seed=1), progress=False)
    assert other.fingerprint != again.fingerprint
    assert read(tmp_path / "other", "train/digits_pairs") == read(folder, "train/digits_pairs")


@pytest.mark.parametrize("task", build.TASKS)
def test_evaluation_records_have_the_agreed_form(folder, task):
    labels = manifest.read_manifest(folder).labels.get(task)
    for part in ("support", "query"):
        for document in read(folder, f"{task}/{part}"):
            image, prompt, answer = document.segments
            assert isinstance(image, Image) and isinstance(prompt, Text) and isinstance(answer, Text)
            assert (prompt.weight, answer.weight) == (0.0, 1.0)
            assert labels is None or answer.text in labels


def test_support_has_as_many_of_each_label(folder):
    counts = collections.Counter(d.segments[2].text for d in read(folder, "digits/support"))
    assert list(counts.values()) == [32] * 10
    assert manifest.read_manifest(folder).labels["digits"][7] == " seven"


def test_queries_of_one_task_share_a_prompt_where_labels_are_closed(folder):
    for task in build.LABELS:
        assert len({d.segments[1].text for d in read(folder, f"{task}/query")}) == 1


def test_pages_are_made_of_the_pairs(folder):
    for source in ("digits", "scenes", "photos"):
        pairs = {pages.read_page(d)[0] for d in read(folder, f"train/{source}_pairs")}
        shots = set()
        for document in read(folder, f"train/{source}_pages"):
            page = pages.read_page(document)
            assert set(page) <= pairs
            assert len(page) == 1 or sum(len(e.prompt + e.answer) + 2 for e in page) <= TINY.page_length
            shots.add(len(page) - 1)
        assert 0 in shots and max(shots) > 2


def test_progress_line_says_how_far_it_is(tmp_path, capfd):
    build.build(tmp_path / "d", build.FirstLightConfig(scenes=5, crops=4, pages=2, texts=2, queries=2))
    err = capfd.readouterr().err
    assert "first_light" in err and "100%" in err
