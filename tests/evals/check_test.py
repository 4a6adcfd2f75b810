import dataclasses

import pytest
import tiny_systems

from mmjax.evals import EvalConfig, check_evals
from mmjax.models import build


def tiny(writer, max_positions=128):
    lm = dataclasses.replace(tiny_systems.LLAMA, vocab_size=writer.tokenizer.vocab_size, max_positions=max_positions)
    return build("flamingo", tiny_systems.config("flamingo", lm=lm))


def check(folder, writer, *fields, model=None):
    configs = [EvalConfig(**dict(name="colours", kind="classification", data=str(folder)) | f) for f in fields]
    check_evals(configs, model or tiny(writer), writer)


@pytest.mark.quick
def test_what_can_run_passes(folder, writer):
    check(folder, writer, dict(shots=(0, 2)), dict(name="captions", kind="captioning", shots=(0,)),
          dict(name="rices", selection="rices", shots=(2,)))


@pytest.mark.parametrize("fields, words", [
    (dict(labels=(" red", " blue", " two red stars")), "the answer ' redder' of 'query/.*' is not among the labels"),
    (dict(shots=(0, 8)), r"eval colours at 8 shots has prompts of up to 1\d\d tokens and answers of 15: max_len=1.* "
                         "exceeds max_positions=128"),
    (dict(kind="captioning", shots=(0,), max_new_tokens=128), "at 0 shots .* answers of 128: max_len="),
])
def test_what_cannot_run_is_named(folder, writer, fields, words):
    with pytest.raises(ValueError, match=words):
        check(folder, writer, fields)


def test_names_must_differ(folder, writer):
    with pytest.raises(ValueError, match="different names"):
        check(folder, writer, {}, {})


def test_a_missing_folder_is_named(tmp_path, writer):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        check(tmp_path / "nowhere", writer, {})
