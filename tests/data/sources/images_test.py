import base64
import os

import pytest

from mmjax.data.documents import DocumentError
from mmjax.data.sources import images
from mmjax.data.sources.images import ImageFolder, from_base64, read_reference


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub/a.jpg").write_bytes(b"a")
    (tmp_path / "secret").write_bytes(b"secret")
    (inside / "near").symlink_to("sub/a.jpg")
    (inside / "far").symlink_to(tmp_path / "secret")
    (inside / "up").symlink_to(tmp_path)
    os.mkfifo(inside / "pipe")
    return inside


@pytest.mark.quick
def test_names_inside_of_the_folder_are_read(folder):
    (folder.parent / "link").symlink_to(folder)
    for root in (folder, folder.parent / "link"):
        assert ImageFolder(root).read("sub/a.jpg") == ImageFolder(root).read("near") == b"a"


@pytest.mark.parametrize("name, words", [
    ("../secret", "without '..'"), ("sub/../../secret", "without '..'"), ("/etc/hostname", "must be relative"),
    ("far", "a link out of the image folder"), ("up/secret", "a link out of the image folder"), ("a\0b", "relative"),
    ("", "relative"), ("pipe", "no regular file"), ("sub", "no regular file"), ("gone", "No such file")])
def test_nothing_else_is_ever_read(folder, name, words):
    with pytest.raises(DocumentError, match=words):
        ImageFolder(folder).read(name)


def test_large_files_are_refused_unread(folder, monkeypatch):
    monkeypatch.setattr(images, "MAX_DOCUMENT_BYTES", 10)
    (folder / "large").write_bytes(b"x" * 11)
    with pytest.raises(DocumentError, match="no regular file of at most 10 bytes"):
        ImageFolder(folder).read("large")


def test_references_are_names_or_data_urls(folder):
    encoded = base64.b64encode(b"\x00\xffdata").decode()
    assert from_base64(encoded) == b"\x00\xffdata"
    assert read_reference("sub/a.jpg", ImageFolder(folder)) == b"a"
    for kind in ("png", "jpeg", "svg+xml"):
        assert read_reference(f"data:image/{kind};base64,{encoded}", ImageFolder(folder)) == b"\x00\xffdata"
    for bad, words in (("http://x/a.jpg", "fetch them first"), ("file:///etc/hostname", "is an address"),
                       ("data:image/png;base64,a", "not base64"), ("data:text/html;base64,AAAA", "cannot be read"),
                       (7, "must be a string"), (f"data:image/png;base64,{encoded}\n", "not base64")):
        with pytest.raises(DocumentError, match=words):
            read_reference(bad, ImageFolder(folder))
