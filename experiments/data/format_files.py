"""Small files in every format that sources read, written by the libraries and in the layout that people have them in.

A writer takes a folder and pairs of an encoded image and its caption, and returns what it wrote: the source that reads
it, and the documents that must come out.
"""

import base64
import dataclasses
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.documents import Document, Image, Text, write_documents

Pair = tuple[bytes, str]


@dataclasses.dataclass(frozen=True)
class Written:
    """A source and the documents it must give, in order."""

    format: str
    path: Path
    documents: list[Document]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def array_record(folder: Path, pairs: Sequence[Pair]) -> Written:
    documents = [Document((Image(data), Text(text), Text(" and more", 0.0)), str(i))
                 for i, (data, text) in enumerate(pairs)]
    write_documents(folder / "a.array_record", documents)
    return Written("array_record", folder, documents)


def webdataset(folder: Path, pairs: Sequence[Pair]) -> Written:
    fetch(folder, pairs)
    return Written("webdataset", folder,
                   [Document((Image(data), Text(text)), f"{i:09}") for i, (data, text) in enumerate(pairs)])


def obelics(folder: Path, pairs: Sequence[Pair], inside: bool = True) -> Written:
    """Pages of two images; encoded inside of the rows, or as names of files beside them."""
    names = keep(folder, pairs)
    rows, documents = [], []
    for i, (a, b) in enumerate(two_by_two(pairs)):
        images = [a[0], b[0]] if inside else names[2 * i:2 * i + 2]
        rows.append(dict(images=[images[0], None, None, images[1]], texts=[None, a[1], b[1], None],
                         metadata=json.dumps([dict(src=url(2 * i)), None, None, dict(src=url(2 * i + 1))]),
                         general_metadata=json.dumps(dict(url=url(i), warc_filename="a.warc.gz"))))
        documents.append(Document((Image(a[0]), Text(a[1]), Text(b[1]), Image(b[0])), url(i)))
    parquet(folder / "pages.parquet", rows)
    return Written("obelics", folder, documents)


def obelics_files(folder: Path, pairs: Sequence[Pair]) -> Written:
    return obelics(folder, pairs, inside=False)


def mmc4(folder: Path, pairs: Sequence[Pair], inside: bool = False) -> tuple[list[dict], list[Document]]:
    """Pages of two images that both like the last sentence most; the second likes it more."""
    names, pages, documents = keep(folder, pairs), [], []
    for i, (a, b) in enumerate(two_by_two(pairs)):
        infos = [dict(image_name=name, raw_url="", matched_text_index=2, matched_sim=0.9)
                 for name in names[2 * i:2 * i + 2]]
        if inside:
            infos = [dict(image_base64=base64.b64encode(data).decode()) for data, _ in (a, b)]
        pages.append(dict(url=url(i), text_list=["First.", a[1], b[1]], image_info=infos, could_have_url_duplicate=0,
                          similarity_matrix=[[0.1, 0.5, 0.6], [0.2, 0.3, 0.9]]))
        documents.append(Document((Text("First."), Image(a[0]), Text(a[1]), Image(b[0]), Text(b[1])), url(i)))
    return pages, documents


def mmc4_lines(folder: Path, pairs: Sequence[Pair]) -> Written:
    pages, documents = mmc4(folder, pairs)
    (folder / "docs.jsonl").write_text("\n".join(map(json.dumps, pages)), "utf-8")
    return Written("mmc4", folder, documents)


def mmc4_zip(folder: Path, pairs: Sequence[Pair]) -> Written:
    pages, documents = mmc4(folder, pairs)
    with zipfile.ZipFile(folder / "docs_shard_0_v2.jsonl.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("docs_shard_0_v2.jsonl", "\n".join(map(json.dumps, pages)))
    return Written("mmc4", folder, documents)


def mmc4_tar(folder: Path, pairs: Sequence[Pair]) -> Written:
    pages, documents = mmc4(folder, pairs, inside=True)
    tar(folder / "000000000.tar", [(f"{i:05}.json", json.dumps(page).encode()) for i, page in enumerate(pages)])
    return Written("mmc4", folder / "000000000.tar", documents)


def llava(folder: Path, pairs: Sequence[Pair]) -> Written:
    """Here "<image>" is always a mark, so no caption may hold it."""
    pairs = [(data, text.replace("<image>", "<picture>")) for data, text in pairs]
    names = keep(folder, pairs)
    (folder / "chat.json").write_text(json.dumps([
        dict(id=f"chat{i}", image=name, conversations=[{"from": "human", "value": "<image>\nWhat is it?"},
                                                       {"from": "gpt", "value": text}])
        for i, (name, (_, text)) in enumerate(zip(names, pairs, strict=True))]), "utf-8")
    return Written("llava", folder / "chat.json", chats(pairs))


def messages(folder: Path, pairs: Sequence[Pair]) -> Written:
    rows = [dict(id=f"chat{i}", messages=[
        dict(role="user", content=[dict(type="image_url", image_url=dict(url=data_url(data))),
                                   dict(type="text", text="What is it?")]),
        dict(role="assistant", content=text)]) for i, (data, text) in enumerate(pairs)]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return Written("messages", folder / "chat.jsonl", chats(pairs))


def coco_captions(folder: Path, pairs: Sequence[Pair]) -> Written:
    names, count = keep(folder, pairs), len(pairs)
    (folder / "captions.json").write_text(json.dumps(dict(
        info={}, licenses=[], images=[dict(id=i, file_name=name) for i, name in enumerate(names)][::-1],
        annotations=[dict(id=100 + i, image_id=i, caption=pairs[i][1]) for i in range(count)])), "utf-8")
    return Written("coco_captions", folder / "captions.json",
                   [Document((Image(data), Text(text)), f"{i}/{100 + i}") for i, (data, text) in enumerate(pairs)])


def karpathy(folder: Path, pairs: Sequence[Pair]) -> Written:
    names = keep(folder / "val2014", pairs)
    (folder / "dataset_coco.json").write_text(json.dumps(dict(dataset="coco", images=[
        dict(filepath="val2014", filename=name, cocoid=i, split="train" if i % 2 else "test",
             sentences=[dict(raw=text), dict(raw="again")])
        for i, (name, (_, text)) in enumerate(zip(names, pairs, strict=True))])), "utf-8")
    documents = [Document((Image(data), Text(t)), f"{i}/{n}") for i, (data, text) in enumerate(pairs) if i % 2
                 for n, t in enumerate((text, "again"))]
    return Written("karpathy", folder / "dataset_coco.json", documents, dict(splits=("train",)))


def vqa(folder: Path, pairs: Sequence[Pair]) -> Written:
    numbers = range(len(pairs))
    for i, (data, _) in enumerate(pairs):
        (folder / f"COCO_train2014_{i:012}.jpg").write_bytes(data)
    (folder / "questions.json").write_text(json.dumps(dict(questions=[
        dict(question_id=10 * i, image_id=i, question="What is it?") for i in numbers])), "utf-8")
    (folder / "annotations.json").write_text(json.dumps(dict(annotations=[
        dict(question_id=10 * i, image_id=i, multiple_choice_answer=pairs[i][1], answers=[
            dict(answer=pairs[i][1], answer_id=1, answer_confidence="yes")]) for i in reversed(numbers)])), "utf-8")
    return Written("vqa", folder / "questions.json", chats(pairs, lambda i: str(10 * i)),
                   dict(annotations=str(folder / "annotations.json"), images=str(folder),
                        image_name="COCO_train2014_{image_id:012}.jpg"))


def cc3m(folder: Path, pairs: Sequence[Pair]) -> Written:
    """Every third image was not fetched."""
    lines = [f"{text}\t{url(i)}\n" for i, (_, text) in enumerate(pairs)]
    (folder / "Train_GCC-training.tsv").write_text("".join(lines), "utf-8")
    return fetched("cc3m", folder, pairs)


def cc12m(folder: Path, pairs: Sequence[Pair]) -> Written:
    lines = [f"{url(i)}\t{text}\n" for i, (_, text) in enumerate(pairs)]
    (folder / "cc12m.tsv").write_text("".join(lines), "utf-8")
    return fetched("cc12m", folder, pairs)


def laion(folder: Path, pairs: Sequence[Pair]) -> Written:
    parquet(folder / "part-00000.parquet", [dict(URL=url(i), TEXT=text, WIDTH=64, similarity=0.3)
                                            for i, (_, text) in enumerate(pairs)])
    return fetched("laion", folder, pairs)


def text_lines(folder: Path, pairs: Sequence[Pair]) -> Written:
    rows = [dict(id=str(i), text=text) for i, (_, text) in enumerate(pairs)]
    (folder / "text.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return Written("text", folder, [Document((Text(text),), str(i)) for i, (_, text) in enumerate(pairs)])


def text_parquet(folder: Path, pairs: Sequence[Pair]) -> Written:
    parquet(folder / "text.parquet", [dict(content=text) for _, text in pairs])
    documents = [Document((Text(text),), f"text.parquet:{i}") for i, (_, text) in enumerate(pairs)]
    return Written("text", folder, documents, dict(field="content"))


def tfds(folder: Path, pairs: Sequence[Pair]) -> Written:
    """Written by TensorFlow Datasets' own writer, in shards of ten."""
    import tensorflow_datasets as library

    features = library.features.FeaturesDict(dict(
        image=library.features.Image(shape=(None, None, 3), encoding_format="jpeg"), text=library.features.Text(),
        number=np.int64))
    identity = library.core.dataset_info.DatasetIdentity(
        name="pairs", version="1.0.0", data_dir=str(folder), module_name="pairs", config_name=None,
        config_description=None)
    writer = library.core.SequentialWriter(library.core.DatasetInfo(builder=identity, features=features), 10,
                                           file_format="array_record")
    writer.initialize_splits(["train"])
    writer.add_examples(dict(train=[dict(image=io.BytesIO(data), text=text, number=i)
                                    for i, (data, text) in enumerate(pairs)]))
    writer.close_all()
    documents = [Document((Image(data), Text(text)), str(i)) for i, (data, text) in enumerate(pairs)]
    return Written("tfds", folder, documents, dict(key="number"))


WRITERS: dict[str, Callable[[Path, Sequence[Pair]], Written]] = {
    writer.__name__: writer for writer in (
        array_record, webdataset, obelics, obelics_files, mmc4_lines, mmc4_zip, mmc4_tar, llava, messages,
        coco_captions, karpathy, vqa, cc3m, cc12m, laion, text_lines, text_parquet, tfds)}


def url(i: int) -> str:
    return f"https://example.org/{i}.jpg"


def data_url(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def two_by_two(pairs: Sequence[Pair]) -> list[tuple[Pair, Pair]]:
    return list(zip(pairs[::2], pairs[1::2], strict=False))


def chats(pairs: Sequence[Pair], keys: Callable[[int], str] = "chat{}".format) -> list[Document]:
    return [Document((Image(data, "user"), Text("What is it?", 0.0, "user"), Text(text, 1.0, "assistant")), keys(i))
            for i, (data, text) in enumerate(pairs)]


def keep(folder: Path, pairs: Sequence[Pair]) -> list[str]:
    """Writes the images as files; returns their names."""
    folder.mkdir(exist_ok=True)
    names = [f"{i}.jpg" for i in range(len(pairs))]
    for name, (data, _) in zip(names, pairs, strict=True):
        (folder / name).write_bytes(data)
    return names


def tar(file: Path, members: Sequence[tuple[str, bytes]]):
    with tarfile.open(file, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def parquet(file: Path, rows: list[dict]):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=4)


def fetch(folder: Path, pairs: Sequence[Pair], numbers: Sequence[int] | None = None):
    """A shard as img2dataset writes it, of these numbers of `pairs`."""
    folder.mkdir(exist_ok=True)
    numbers = range(len(pairs)) if numbers is None else numbers
    tar(folder / "00000.tar", [(f"{i:09}.{kind}", value) for i in numbers for kind, value in (
        ("jpg", pairs[i][0]), ("txt", pairs[i][1].encode()),
        ("json", json.dumps(dict(url=url(i), caption=pairs[i][1], key=f"{i:09}", status="success")).encode()))])
    (folder / "00000_stats.json").write_text(json.dumps(dict(count=len(pairs), successes=len(numbers))))


def fetched(form: str, folder: Path, pairs: Sequence[Pair]) -> Written:
    numbers = [i for i in range(len(pairs)) if i % 3]
    fetch(folder / "images", pairs, numbers)
    return Written(form, folder, [Document((Image(pairs[i][0]), Text(pairs[i][1])), url(i)) for i in numbers],
                   dict(images=str(folder / "images")))
