"""Documents from the command line, and what the model says to them."""

import io

import numpy as np
import PIL.Image
import pytest

from mmjax.cli import generate
from mmjax.cli.main import FAILED, USAGE, main


@pytest.fixture
def picture(tmp_path):
    out = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(out, "PNG")
    (tmp_path / "a.png").write_bytes(out.getvalue())
    return tmp_path / "a.png"


def test_segments_keep_the_order_of_the_command_line():
    line = "--workdir=x --text=a --image b.png --prompt=c --text d"
    args = generate.make_parser().parse_args(line.split())
    assert [value for _, value in args.segments] == ["a", "b.png", "c", "d"]
    assert [kind == "--image" for kind, _ in args.segments] == [False, True, False, False]


def test_it_continues_an_image_and_text(finished, picture, capfd):
    command = ["generate", f"--workdir={finished}", f"--image={picture}", "--text=A photo", "--max-new-tokens=3"]
    assert main(command) == 0
    assert capfd.readouterr().out.endswith("\n")


def test_an_earlier_stage_continues_text_by_greedy_beams_and_chance(finished, capfd):
    command = ["generate", f"--workdir={finished}", "--stage=language", "--text=A red", "--max-new-tokens=3"]
    outputs = []
    for flags in ([], ["--beams=3"], ["--temperature=9", "--seed=1"], ["--temperature=9", "--seed=2"]):
        assert main(command + flags) == 0
        outputs.append(capfd.readouterr().out)
    greedy, beams, *drawn = outputs
    scores = [float(line.split("\t")[0]) for line in beams.split("\n") if "\t" in line]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert len({greedy, *drawn}) == 3


@pytest.mark.parametrize("flags, code, words", [
    ([], USAGE, "nothing to continue"),
    (["--text=a", "--stage=flamigo"], USAGE, "did you mean 'flamingo'"),
    (["--text=a", "--step=7"], FAILED, "no checkpoint of step 7"),
    (["--text=a", "--temperature=-1"], FAILED, "temperature=-1.0 must not be negative"),
    (["--image=nowhere.png"], FAILED, "nowhere.png: No such file"),
    (["--stage=language", "--image={}"], FAILED, "takes text only"),
    (["--text=a", "--max-new-tokens=300"], FAILED, "256"),
])
def test_bad_input_is_one_message(finished, picture, capfd, flags, code, words):
    capfd.readouterr()
    assert main(["generate", f"--workdir={finished}", *(f.format(picture) for f in flags)]) == code
    message = capfd.readouterr().err
    assert words in message and message.count("\n") == 1


def test_a_truncated_image_is_named(finished, picture, capfd):
    picture.write_bytes(picture.read_bytes()[:200])
    assert main(["generate", f"--workdir={finished}", f"--image={picture}"]) == FAILED
    assert f"mmjax: error: {picture}: image truncated or damaged" in capfd.readouterr().err
