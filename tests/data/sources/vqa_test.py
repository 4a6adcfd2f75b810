import json
import pickle

import pytest

from mmjax.data.documents import Document, DocumentError, Image, Text
from mmjax.data.sources import open_source


@pytest.fixture
def folder(tmp_path):
    for i in (3, 12):
        (tmp_path / f"COCO_{i:012d}.jpg").write_bytes(b"jpeg %d" % i)
    return tmp_path


def open_vqa(folder, questions, annotations, **options):
    (folder / "questions.json").write_text(json.dumps(dict(info={}, questions=questions)))
    (folder / "annotations.json").write_text(json.dumps(dict(info={}, annotations=annotations)))
    options = dict(annotations=str(folder / "annotations.json"), images=str(folder),
                   image_name="COCO_{image_id:012d}.jpg") | options
    return open_source("vqa", folder / "questions.json", **options)


def question(number, image, text="what?"):
    return dict(question_id=number, image_id=image, question=text)


def annotation(number, *answers, **fields):
    return dict(question_id=number, answers=[dict(answer=a, answer_id=i + 1) for i, a in enumerate(answers)], **fields)


def document(image, text, answer, key, weight=1.0):
    segments = Image(b"jpeg %d" % image, "user"), Text(text, 0.0, "user"), Text(answer, weight, "assistant")
    return Document(segments, key)


QUESTIONS = [question(31, 3, "is it {red}?"), question(120, 12)]
ANNOTATIONS = [annotation(120, "cat", "dog", "dog", "cat"), annotation(31, "no", "yes", multiple_choice_answer="yes")]


@pytest.mark.quick
def test_the_most_common_answer(folder):
    source = open_vqa(folder, QUESTIONS, ANNOTATIONS)
    made = [document(3, "is it {red}?", "yes", "31"), document(12, "what?", "cat", "120")]
    assert list(source) == list(pickle.loads(pickle.dumps(source))) == made and source[1] == made[1]


def test_each_answer_has_the_share_of_people_who_gave_it_as_its_weight(folder):
    answers = [annotation(120, "cat", "dog", "dog", "dog"), annotation(31, "no")]
    assert list(open_vqa(folder, QUESTIONS, answers, answers="each")) == [
        document(3, "is it {red}?", "no", "31/0"), document(12, "what?", "cat", "120/0", 0.25),
        document(12, "what?", "dog", "120/1", 0.75)]
    (folder / "fewer.json").write_text(json.dumps(dict(annotations=[annotation(120, "cat"), annotation(31, "no")])))
    fewer = open_source("vqa", folder / "questions.json", annotations=str(folder / "fewer.json"), images=str(folder),
                        image_name="COCO_{image_id:012d}.jpg", answers="each")
    assert len(fewer) == 2                              # the counts that are kept are of other answers


def test_patterns_of_questions_and_answers(folder):
    source = open_vqa(folder, QUESTIONS, ANNOTATIONS, question="Question: {question} Short answer:", answer=" {answer}")
    assert source[0] == document(3, "Question: is it {red}? Short answer:", " yes", "31")
    for option, value, words in (("image_name", "{id}.jpg", "may hold {image_id} only"),
                                 ("question", "{answer}", "may hold {question} only"),
                                 ("answer", "{", "may hold {answer}"), ("answers", "all", "most_common")):
        with pytest.raises(ValueError, match=f"vqa {option}=.*{words}"):
            open_vqa(folder, QUESTIONS, ANNOTATIONS, **{option: value})
    with pytest.raises(ValueError, match="needs the option 'annotations'"):
        open_source("vqa", folder, images=str(folder), image_name="x")


@pytest.mark.parametrize("asked, told, words", [
    (question(5, 3), annotation(6, "x"), "5 is no question_id of annotations"),
    (question(5, 4), annotation(5, "x"), "COCO_000000000004.jpg.*No such file"),
    (question(5, "a"), annotation(5, "x"), "image_id='a' does not fit image_name"),
    (question(5, 3), annotation(5), "'answers' must be a list of one or more"),
    (question(5, 3, 9), annotation(5, "x"), "'question' is 9")])
@pytest.mark.parametrize("answers", ["most_common", "each"])
def test_damaged_questions_are_named(folder, asked, told, words, answers):
    source = open_vqa(folder, [asked, question(31, 3)], [told, annotation(31, "yes")], answers=answers)
    assert source[1].segments[2].text == "yes"
    with pytest.raises(DocumentError, match=f"questions.json record 0: .*{words}"):
        source[0]


def test_the_fingerprint_knows_questions_and_annotations(folder):
    first = open_vqa(folder, QUESTIONS, ANNOTATIONS).fingerprint()
    other = open_vqa(folder, QUESTIONS, json.loads(json.dumps(ANNOTATIONS).replace("yes", "yet"))).fingerprint()
    assert [f[0] for f in first] == ["questions.json", "annotations.json"]
    assert first[0] == other[0] and first[1] != other[1]
