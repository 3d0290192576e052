import pytest

from vision_remember.data.schema import IMAGE
from vision_remember.data.synthetic.samples import READ_ALL, READ_CELLS, SyntheticSamples


def turns(**options):
    samples = SyntheticSamples(1, split="train", seed=0, families=["form"], questions=2, **options)
    return samples.page(0), samples[0]


def test_questions_alone():
    page, sample = turns()
    assert len(sample.turns) == 4 and len(sample.images) == 1
    assert sample.turns[0].parts[0] is IMAGE and IMAGE not in sample.turns[2].parts
    assert {sample.turns[1].parts[0], sample.turns[3].parts[0]} <= {question.answer for question in page.questions}


@pytest.mark.parametrize(("transcript", "asked"), [("lines", READ_ALL), ("cells", READ_CELLS)])
def test_the_whole_page_is_asked_for_first(transcript, asked):
    page, sample = turns(transcript=transcript)
    whole = page.transcript if transcript == "lines" else "".join(page.text)
    assert sample.turns[0].parts == (IMAGE, f"\n{asked}") and sample.turns[1].parts == (whole,)
    assert len(sample.turns) == 6 == 2 * len(sample.evidence)


def test_a_page_without_writing_has_no_lines_to_read():
    samples = SyntheticSamples(1, split="train", seed=0, families=["layout"], transcript="lines")
    assert READ_ALL not in samples[0].turns[0].parts[1]


def test_a_page_as_text_has_its_cells_in_the_place_of_the_image():
    page, sample = turns(as_text=True)
    assert sample.images == () and sample.turns[0].parts[0] == "".join(page.text)


def test_what_is_asked_changes_the_name_of_the_set():
    names = {turns(**options)[1].source for options in ({}, {"as_text": True}, {"transcript": "lines"})}
    assert len(names) == 3
