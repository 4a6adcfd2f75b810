import pytest

from mmjax.evals import EvalConfig


@pytest.mark.parametrize("fields, words", [
    (dict(name="a/b"), "name='a/b'"),
    (dict(kind="guessing"), "kind='guessing' is unknown; known: classification, captioning"),
    (dict(selection="best"), "selection='best' is unknown"),
    (dict(shots=()), "shots="),
    (dict(shots=(2, 2)), "different numbers"),
    (dict(batch_size=0), "batch_size=0 must be at least 1"),
    (dict(labels=(" a",)), "two or more different answers"),
    (dict(kind="captioning", labels=(" a", " b")), "belong to kind='classification'"),
])
def test_refuses(fields, words):
    with pytest.raises(ValueError, match=words):
        EvalConfig(**dict(name="digits", kind="classification", data="data") | fields)
