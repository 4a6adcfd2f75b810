import json
import pickle

import pytest

from mmjax.data.documents import DocumentError
from mmjax.data.sources.identifiers import ById
from mmjax.data.sources.records import open_json


@pytest.mark.quick
def test_objects_are_found_by_their_number_the_first_of_several(tmp_path):
    file = tmp_path / "a.json"
    items = [dict(id=30, v="a"), dict(id=-5, v="b"), dict(v="none"), 7, dict(id=True), dict(id=2**70),
             dict(id=30, v="c")]
    file.write_text(json.dumps(dict(images=items)))
    found = ById(str(file), "images", "id", open_json(str(file), "images"))
    for by_id in (found, pickle.loads(pickle.dumps(found))):
        assert by_id.object(30)["v"] == "a" and by_id.object(-5)["v"] == "b"
    for absent in (1, 0, 31, -6, 2**70, -2**70):
        with pytest.raises(DocumentError, match=f"^{absent} is no id of images"):
            found.object(absent)


def test_a_list_without_numbers_has_none(tmp_path):
    (tmp_path / "a.json").write_text('{"images": []}')
    with pytest.raises(DocumentError, match="3 is no id of images"):
        ById(str(tmp_path / "a.json"), "images", "id", open_json(str(tmp_path / "a.json"), "images")).object(3)
