import base64
import io
import itertools
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from mmjax.data.documents import Document, DocumentError, Image, Text
from mmjax.data.sources import open_source

pytest.importorskip("scipy")


def page(sentences, similarity, inside=False, url="http://x/p", published=()):
    infos = []
    for i in range(len(similarity)):
        infos.append(dict(image_name=f"{i}.png", raw_url="http://x", face_detections=None))
        if inside:
            infos[-1] = dict(image_base64=base64.b64encode(b"image %d" % i).decode())
        if published:
            infos[-1] |= dict(matched_text_index=published[i][0], matched_sim=published[i][1])
    return dict(url=url, text_list=sentences, image_info=infos, similarity_matrix=similarity,
                could_have_url_duplicate=0)


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"image %d" % i)
    return tmp_path


def read(folder, pages, **options):
    (folder / "docs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pages))
    return open_source("mmc4", folder / "docs.jsonl", **options)


@pytest.mark.quick
def test_each_image_stands_before_the_sentence_of_the_best_assignment(folder):
    both_like_the_last = page(["one", "two <image>", "three"], [[0.1, 0.5, 0.9], [0.2, 0.3, 0.8]])
    source = read(folder, [both_like_the_last, page(["a", "b"], [[0.23, 0.1]], url=None), page(["c"], [])])
    made = [Document((Text("one"), Image(b"image 0"), Text("two <image>"), Image(b"image 1"), Text("three")),
                     "http://x/p"),
            Document((Text("a b"),), "docs.jsonl:1"), Document((Text("c"),), "http://x/p")]
    assert list(source) == list(pickle.loads(pickle.dumps(source))) == made and source[2] == made[2]
    assert source.blocks() is None


def test_the_assignment_is_the_best_of_all(folder):
    rng = np.random.default_rng(0)
    for _ in range(20):
        matrix = rng.uniform(0, 1, (3, 4))
        best = max(itertools.permutations(range(4), 3), key=lambda p: sum(matrix[range(3), p]))
        segments = read(folder, [page(list("abcd"), matrix.tolist())], threshold=-1.0)[0].segments
        after = dict(itertools.pairwise(segments))
        assert [after[Image(b"image %d" % i)].text[0] for i in range(3)] == ["abcd"[s] for s in best]


@pytest.mark.parametrize("threshold, images", [(0.24, 1), (0.241, 0), (0.2, 2)])
def test_the_threshold_is_the_least_similarity_kept(folder, threshold, images):
    source = read(folder, [page(["a", "b"], [[0.24, 0.0], [0.0, 0.2]])], threshold=threshold)
    assert sum(isinstance(s, Image) for s in source[0].segments) == images


def test_published_matches_may_share_a_sentence(folder):
    source = read(folder, [page(["a", "b"], [[0, 0], [0, 0]], published=[(1, 0.3), (1, 0.5)])], assignment="published")
    assert source[0].segments == (Text("a"), Image(b"image 0"), Image(b"image 1"), Text("b"))
    with pytest.raises(ValueError, match="assignment='best' is unknown; known: one_to_one, published"):
        read(folder, [page(["a"], [])], assignment="best")
    with pytest.raises(ValueError, match="threshold=24 must be a cosine"):
        read(folder, [page(["a"], [])], threshold=24)


@pytest.mark.quick
def test_tar_and_zip_shards_hold_the_same_pages(folder):
    pages = [page(["a", "b"], [[0.1, 0.9]], inside=True, url=f"http://x/{i}") for i in range(3)]
    want = [Document((Text("a"), Image(b"image 0"), Text("b")), f"http://x/{i}") for i in range(3)]
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for i, p in enumerate(pages):
            data = json.dumps(p).encode()
            info = tarfile.TarInfo(f"{i:05}.json")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("9.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    source = open_source("mmc4", folder / "shard.tar")
    assert list(source) == want and source.dropped == {"symbolic link": 1}
    with zipfile.ZipFile(folder / "docs.jsonl.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("docs.jsonl", "\n".join(map(json.dumps, pages)))
    source = open_source("mmc4", folder / "docs.jsonl.zip")
    assert list(source) == want and source.files == [str(folder / "docs.jsonl.zip")]
    assert len(open_source("mmc4", folder)) == 6            # what was unpacked is no file of its own


@pytest.mark.parametrize("change, words", [
    (dict(similarity_matrix=[[0.5]]), "has shape .1, 1.; .* 1 images and 2 sentences"),
    (dict(similarity_matrix=[[0.5, float("nan")]]), "must be finite"),
    (dict(similarity_matrix=[["a", "b"]]), "no matrix"),
    (dict(text_list=["a", 1]), "text_list must hold strings"), (dict(image_info=[3]), "image_info objects"),
    (dict(image_info=[dict(image_name="../0.png")]), "without '..'"),
    (dict(image_info=[dict(image_base64="@")]), "not base64"), (dict(image_info=[{}]), "no field 'image_name'"),
    (dict(text_list=[], image_info=[], similarity_matrix=[]), "0 segments"),
    (dict(text_list=None), "'text_list' is None")])
def test_damaged_pages_are_named(folder, change, words):
    good = page(["a", "b"], [[0.9, 0.1]])
    source = read(folder, [good, good | change])
    assert len(source[0].segments) == 2
    with pytest.raises(DocumentError, match=f"docs.jsonl record 1: .*{words}"):
        source[1]
