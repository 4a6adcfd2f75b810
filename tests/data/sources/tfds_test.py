import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from mmjax.data.documents import Document, DocumentError, Image, Text
from mmjax.data.sources import open_source

tfds = pytest.importorskip("tensorflow_datasets")
COUNT = 5


def png(i):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(i).integers(0, 255, (4, 5, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder, count=COUNT, caption="caption", file_format="array_record"):
    """A data set of TensorFlow Datasets in shards of 3, written by its own writer."""
    folder.mkdir(parents=True, exist_ok=True)
    features = tfds.features
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="pairs", version="1.0.0", data_dir=str(folder), module_name="pairs", config_name=None,
        config_description=None)
    info = tfds.core.DatasetInfo(builder=identity, features=features.FeaturesDict(dict(
        image=features.Image(shape=(None, None, 3), encoding_format="png"), text=features.Text(), number=np.int64,
        label=features.ClassLabel(names=["cat", "dog"]), texts=features.Sequence(features.Text()),
        images=features.Sequence(features.Image(shape=(None, None, 3), encoding_format="png")))))
    writer = tfds.core.SequentialWriter(info, 3, file_format=file_format)
    writer.initialize_splits(["train", "test"])
    for split, n in (("train", count), ("test", 1)):
        writer.add_examples({split: [dict(
            image=io.BytesIO(png(i)), text=f"{caption} {i} \u2603", number=100 + i, label=i % 2, texts=["a", f"b{i}"],
            images=[io.BytesIO(png(j)) for j in range(i)])
            for i in range(n)]})
    writer.close_all()
    return sorted(str(f) for f in folder.iterdir() if "-train." in f.name)


@pytest.mark.quick
def test_features_become_segments_without_being_decoded(tmp_path):
    shards = write(tmp_path)
    source = open_source("tfds", tmp_path)
    names = [f"{os.path.basename(shards[i // 3])}:{i % 3}" for i in range(COUNT)]
    made = [Document((Image(png(i)), Text(f"caption {i} \u2603")), names[i]) for i in range(COUNT)]
    assert list(source) == list(pickle.loads(pickle.dumps(source))) == made and source[3] == made[3]
    assert source.files == shards and source.blocks() is None
    chosen = open_source("tfds", tmp_path, fields=("texts", "label", "images"), key="number")
    assert chosen[1] == Document((Text("a"), Text("b1"), Text("dog"), Image(png(0))), "101")
    assert len(open_source("tfds", tmp_path, split="test")) == 1
    assert list(open_source("tfds", shards[1])) == made[3:]


def test_tensorflow_stays_out(tmp_path):
    write(tmp_path)
    code = ("import sys; from mmjax.data.sources import open_source; "
            f"open_source('tfds', {str(tmp_path)!r})[0]; assert 'tensorflow' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wrong_names_and_folders(tmp_path):
    write(tmp_path / "data")
    for options, words in ((dict(split="dev"), "has no split 'dev'; it has train, test"),
                           (dict(fields="caption"), "has no feature 'caption'; it has "),
                           (dict(fields="number"), "feature 'number' is a .*; it must be Image, Text")):
        with pytest.raises(DocumentError, match=words):
            open_source("tfds", tmp_path / "data", **options)
    with pytest.raises(FileNotFoundError, match="has no dataset_info.json; give the folder of a version"):
        open_source("tfds", tmp_path)
    (tmp_path / "data/features.json").write_text("{")
    with pytest.raises(DocumentError, match="is no readable TensorFlow data set"):
        open_source("tfds", tmp_path / "data")


def test_a_damaged_description_names_the_folder(tmp_path):
    write(tmp_path)
    info = tmp_path / "dataset_info.json"
    info.write_text(info.read_text().replace("{SHARD_", "{WHARD_"))
    with pytest.raises(DocumentError, match="has a dataset_info.json that does not name the shards of 'train'"):
        open_source("tfds", tmp_path)


def test_another_file_format_is_refused(tmp_path):
    write(tmp_path)
    info = tmp_path / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | dict(fileFormat="tfrecord")))
    with pytest.raises(DocumentError, match="is written as tfrecord; only array_record"):
        open_source("tfds", tmp_path)


def test_a_cut_replaced_or_missing_shard(tmp_path):
    shard = write(tmp_path)[0]
    first = open_source("tfds", tmp_path).fingerprint()
    os.truncate(shard, os.path.getsize(shard) - 1)
    with pytest.raises(DocumentError, match="not a complete ArrayRecord file.* 3 documents expected, 0 doc.* found"):
        open_source("tfds", tmp_path)
    source = open_source("tfds", tmp_path, on_bad_shard="skip")
    assert len(source) == 2 and source.dropped == {"shard damaged": 3}
    os.unlink(shard)
    source = open_source("tfds", tmp_path, on_bad_shard="skip")
    assert len(source) == 2 and source.dropped == {"shard damaged": 3} and source.fingerprint()[0][1:] == [0, "", 0]
    write(tmp_path, caption="CAPTION")
    assert open_source("tfds", tmp_path).fingerprint() != first
    os.replace(write(tmp_path)[1], shard)
    with pytest.raises((DocumentError, FileNotFoundError), match="3 documents expected, 2 documents found"):
        open_source("tfds", tmp_path)
