import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from tests.evaluation import made_up
from vision_remember.evaluation.report import render_report
from vision_remember.evaluation.specimens import Specimen

ODD = "<img src=x onerror=alert(1)> & \"quoted\" 'too'"


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(made_up.results(), [_specimen()])


def test_the_report_is_well_formed_and_loads_nothing(page: str) -> None:
    reader = _Reader()
    reader.feed(page)
    assert reader.open == []
    assert not re.search(r"https?:|url\((?!#)|@import|<script|<link|<iframe", page.replace("&lt;script", ""))
    assert {source[:22] for source in reader.sources} == {"data:image/png;base64,"}
    assert "default-src 'none'" in page


def test_what_a_model_or_a_page_says_is_shown_as_text(page: str) -> None:
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt; &amp; &quot;quoted&quot; &#x27;too&#x27;" in page
    assert "made &lt;up&gt; &amp; small" in page


def test_every_row_question_and_answer_is_there(page: str) -> None:
    text = _text(page)
    for wanted in (*made_up.CHANCES, "Which colour?", "vision-remember compare none.yaml", "Figure 4.", "Table 2."):
        assert wanted in text, wanted
    assert page.count('class="right"') == 1 and page.count('class="wrong"') == 2
    assert page.count("<svg") == page.count("</svg>") == 4


def test_the_figures_keep_their_words_as_text(page: str) -> None:
    drawings = " ".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    for wanted in ("fine mean", "layout", "avg_pool + remember", "vision tokens per page", "training step"):
        assert wanted in drawings, wanted


def test_the_same_results_give_the_same_bytes(page: str) -> None:
    assert render_report(made_up.results(), [_specimen()]) == page


def test_what_the_rows_were_trained_on_is_said_where_they_know(page: str) -> None:
    assert "mean over seeds, on CPU and a GPU." in page
    results = made_up.results()
    for row in results["rows"]:
        row["device"] = None
    assert "mean over seeds. Prefill" in render_report(results, [])


def test_a_comparison_without_pairs_has_no_figure_of_them() -> None:
    results = made_up.results()
    results["summary"]["differences"] = []
    page = render_report(results, [])
    assert page.count("<svg") == 3 and "Row against row" not in page and "Figure 3. Learning curves." in _text(page)


def test_a_row_that_stands_apart_says_why_and_is_not_the_headline() -> None:
    results = made_up.results()
    results["apart"] = {"avg_pool + remember": "it sees more pixels"}
    text = _text(render_report(results, []))
    assert (
        "avg_pool + remember stands apart: it sees more pixels." in text and "avg_pool + remember wins back" not in text
    )
    assert text.count("apart: it sees more pixels") == 3  # in both tables and in words


def test_bad_news_is_written_out() -> None:
    worse = {"uncompressed": 0.9, "avg_pool": 0.89, "avg_pool + remember": 0.5}
    text = _text(render_report(made_up.results(chances=worse), []))
    assert "recovery is not defined: uncompressed leads avg_pool by" in text
    assert "too few to say whether layout is hurt" in text


def test_many_rows_several_splits_and_one_seed_make_a_report_too() -> None:
    results = made_up.results(seeds=(0,), splits=("test", "shift"))
    assert "training noise" in _text(render_report(results, []))


class _Reader(HTMLParser):
    """Checks that elements close in order, and collects what images load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href") and tag == "img"]

    def handle_startendtag(self, tag, attrs) -> None:
        """An element that closes itself."""

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def _text(page: str) -> str:
    body = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", "", body).split())


def _specimen() -> Specimen:
    png = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(png, format="PNG")
    predictions = {"uncompressed": ("red", True), "avg_pool": (ODD, False), "avg_pool + remember": ("", False)}
    return Specimen(
        family="layout",
        question="Which colour?",
        answer="red",
        png=png.getvalue(),
        size=(8, 8),
        evidence=(2, 2, 6, 6),
        predictions=predictions,
    )
