"""A data folder, and the model that names what it sees; `colours` and `tiny_systems` can be imported."""

import sys
from pathlib import Path

import pytest

from mmjax.data.documents import Document, write_documents
from mmjax.data.images import ImageSpec
from mmjax.data.templates import make_template
from mmjax.data.tokenizer import byte_tokenizer
from mmjax.evals.prompts import Writer

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from colours import LABELS, SIZE, Namer, segments  # noqa: E402


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """`support` has six pictures of every label, `query` five of them; `pages` four pages of nine examples."""
    folder = tmp_path_factory.mktemp("task")
    for name, count in (("support", 6), ("query", 5)):
        write_documents(folder / f"{name}.array_record",
                        [Document(segments(label, shade), f"{name}/{label}/{shade}")
                         for shade in range(1, count + 1) for label in range(4)])
    pages = [[(i + page) % 2 + 2 * (page % 2) for i in range(9)] for page in range(4)]
    write_documents(folder / "pages.array_record",
                    [Document(sum((segments(label, i) for i, label in enumerate(page)), ()), f"page/{number}")
                     for number, page in enumerate(pages)])
    return folder


@pytest.fixture(scope="session")
def writer() -> Writer:
    return Writer(byte_tokenizer(), make_template("flamingo"), ImageSpec(size=SIZE))


@pytest.fixture(scope="session")
def namer(writer) -> Namer:
    answers = tuple((*writer.tokenizer.encode(label), *writer.end_ids) for label in LABELS)
    return Namer(answers, writer.tokenizer.vocab_size)
