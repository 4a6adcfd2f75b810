import pytest

from mmjax.data import sources
from mmjax.data.documents import Document, Text, write_documents


@pytest.mark.quick
def test_open_source_opens_by_name(tmp_path):
    page = Document((Text("a"),), "k")
    write_documents(tmp_path / "a.array_record", [page])
    assert list(sources.open_source("array_record", tmp_path, on_bad_shard="skip")) == [page]


def test_unknown_formats_and_options_are_refused_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"'arrayrecord' is unknown \(did you mean 'array_record'\?\); known: array"):
        sources.open_source("arrayrecord", tmp_path)
    with pytest.raises(ValueError, match=r"has no option 'on_bad_shards' \(did you mean 'on_bad_shard'\?\)"):
        sources.open_source("array_record", tmp_path, on_bad_shards="skip")
    with pytest.raises(ValueError, match="has no option 'path'; known"):
        sources.check_source("array_record", {"path": "elsewhere"})
