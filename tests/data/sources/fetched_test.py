import io
import json
import pickle
import tarfile

import numpy as np
import pytest

from mmjax.data.documents import Document, DocumentError, Image
from mmjax.data.sources.fetched import FetchedImages, digest


def write(file, entries):
    with tarfile.open(file, "w") as tar:
        for key, meta in entries:
            for extension, data in (("jpg", key.encode()), ("json", json.dumps(meta).encode())):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.mark.quick
def test_the_first_image_of_an_address_is_found_among_all_shards(tmp_path):
    write(tmp_path / "0.tar", [("a", dict(url="u3")), ("b", dict(url="u1")), ("c", dict(url="u3"))])
    write(tmp_path / "1.tar", [("d", dict(url="u1")), ("e", dict(url="u\u2603")), ("f", dict(caption="no address"))])
    images = FetchedImages(tmp_path)
    for opened in (images, pickle.loads(pickle.dumps(images))):
        assert opened.look_up(np.array([digest(u) for u in ("u\u2603", "u1", "u2", "u3")])).tolist() == [4, 1, -1, 0]
        assert opened[4] == Document((Image(b"e"),), "u\u2603")
    with pytest.raises(DocumentError, match="1.tar record 2: no field 'url'"):
        images[5]


def test_digests_are_signed_numbers_of_64_bits_that_never_change():
    assert digest("https://example.org/1.jpg") == digest("https://example.org/1.jpg") != digest("https://example.org/2.jpg")
    found = np.array([digest(str(i)) for i in range(1000)], np.int64)
    assert len(set(found.tolist())) == 1000 and 400 < (found < 0).sum() < 600
    assert isinstance(digest("\ud800"), int)
