"""A contact sheet shows pages, questions, answers and evidence, and shows bad samples as bad."""

import json

import pytest
from PIL import Image, ImageChops

from tests.data.pictures import checkers, encode
from vision_remember.data.contact_sheet import COLUMNS, MARGIN, PAGE, draw_contact_sheet, write_contact_sheet
from vision_remember.data.schema import IMAGE, DataError, Sample, Turn


def sample(number, question="What stands in the first line of the page?", evidence=None, answer="42"):
    turns = (Turn("user", (IMAGE, question)), Turn("assistant", (answer,)))
    return Sample(id=f"s{number}", images=(checkers(40, 30),), turns=turns, source="t", evidence=evidence)


class Samples(list):
    fingerprint = ""


def test_the_sheet_has_a_cell_for_every_sample_and_stops_at_the_count():
    for count, shown in ((1, 1), (3, 3), (COLUMNS, COLUMNS), (9, COLUMNS)):
        sheet = draw_contact_sheet(Samples(sample(number) for number in range(count)))
        assert sheet.width == MARGIN + (PAGE + MARGIN) * shown
    five, two = (draw_contact_sheet(Samples(sample(n) for n in range(9)), count=count) for count in (5, 2))
    assert five.height > 2 * PAGE > two.height


def test_question_answer_and_evidence_are_drawn():
    plain = draw_contact_sheet(Samples([sample(0)]))
    for other in (sample(0, question="Why?"), sample(0, answer="43"), sample(0, evidence=((5, 5, 20, 20),))):
        drawn = draw_contact_sheet(Samples([other]))
        assert drawn.size != plain.size or ImageChops.difference(drawn, plain).getbbox()


def test_any_text_fits_into_its_cell():
    for text in ("w" * 3000, "a\n\t\0b " * 300, "\u4e2d\u6587" * 50, " "):
        draw_contact_sheet(Samples([sample(0, question=text + ".", answer=text + ".")]))
    flat = Sample(id="t", images=(), turns=(Turn("user", ("Q",)), Turn("assistant", ("A",))), source="t")
    many = tuple(turn for n in range(5) for turn in (Turn("user", (f"Q{n}",)), Turn("assistant", (f"A{n}",))))
    draw_contact_sheet(Samples([flat, Sample(id="m", images=(), turns=many, source="t")]))


def test_the_picture_is_written_and_bad_samples_are_shown_as_bad(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(checkers()))
    (tmp_path / "b.png").write_bytes(b"broken")
    talk = [{"from": "human", "value": "<image>Q"}, {"from": "gpt", "value": "A"}]
    records = [{"id": name, "image": f"{name}.png", "conversations": talk} for name in "ab"] + [{"id": "c"}]
    (tmp_path / "data.json").write_text(json.dumps(records))
    out = write_contact_sheet(tmp_path, tmp_path / "out" / "sheet.png")
    with Image.open(out) as sheet:
        assert sheet.format == "PNG" and sheet.width == MARGIN + 3 * (PAGE + MARGIN)
        red = [count for count, colour in sheet.getcolors(1 << 24) if colour == (180, 0, 0)]
        assert red, "the reason stands in red"
    with pytest.raises(DataError):
        write_contact_sheet(tmp_path / "none", tmp_path / "x.png")
