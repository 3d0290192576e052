"""Image names in a data set stay under its folder, and a near miss is answered with the name that was meant."""

import os
import unicodedata

import pytest

from vision_remember.data.files import resolve_under
from vision_remember.data.images import ImageError


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    (folder / "Pages").mkdir(parents=True)
    (folder / "Pages" / "page_1.png").write_bytes(b"x")
    (folder / "Pages" / unicodedata.normalize("NFD", "résumé.png")).write_bytes(b"x")
    (tmp_path / "secret.png").write_bytes(b"x")
    return folder


def refusal(root, name) -> ImageError:
    with pytest.raises(ImageError) as caught:
        resolve_under(str(root), name)
    assert str(root) not in str(caught.value), "messages do not spell the path of the root"
    return caught.value


def test_a_name_under_the_root_is_found(root):
    assert resolve_under(str(root), "Pages/page_1.png") == root / "Pages" / "page_1.png"
    assert resolve_under(str(root), "Pages/../Pages/./page_1.png") == root / "Pages" / "page_1.png"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../secret.png",
        "Pages/../../secret.png",
        "../../../../../../etc/passwd",
        "..",
        "Pages\\page_1.png",
        "C:\\page.png",
        "C:/page.png",
        "page\0.png",
        "http://host/page.png",
        "HTTPS://host/page.png",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "//host/share/page.png",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(root, name):
    assert refusal(root, name).code == "image.path"


def test_a_link_out_of_the_root_is_refused_and_a_link_inside_is_followed(root):
    (root / "out.png").symlink_to("../secret.png")
    (root / "outside").symlink_to("..")
    (root / "in.png").symlink_to("Pages/page_1.png")
    assert refusal(root, "out.png").code == "image.path"
    assert refusal(root, "outside/secret.png").code == "image.path"
    assert resolve_under(str(root), "in.png") == root / "Pages" / "page_1.png"


def test_loops_and_impossible_names_are_refused(root):
    (root / "loop").symlink_to("loop")
    assert refusal(root, "loop").code == "image.unreadable"
    assert refusal(root, "a" * 5000).code == "image.unreadable"
    assert refusal(root, "Pages/page_1.png/x.png").code == "image.unreadable"
    assert refusal(root, "half \ud800.png").code == "image.unreadable"


@pytest.mark.parametrize("name", ["pages/page_1.png", "Pages/PAGE_1.PNG", "Pages/page1.png", "Page/page_1.png"])
def test_a_name_in_another_case_or_spelling_is_answered_with_the_one_that_exists(root, name):
    error = refusal(root, name)
    assert error.code == "image.missing" and "'Pages/page_1.png' exists" in error.why


def test_a_name_in_another_unicode_form_is_answered_with_the_one_that_exists(root):
    error = refusal(root, unicodedata.normalize("NFC", "Pages/résumé.png"))
    assert "exists" in error.why and "\\u0301" in error.why, "the two look alike, so the difference is spelled out"


def test_whether_a_file_outside_exists_is_not_told(root):
    assert str(refusal(root, "../secret.png")) == str(refusal(root, "../absent.png"))


def test_no_name_outside_the_root_is_ever_suggested(root):
    (root / "outside").symlink_to("..")
    for name in ("../secre.png", "outside/secre.png"):
        assert "secret" not in str(refusal(root, name))


def test_nothing_similar_gets_no_suggestion(root):
    assert "exists" not in refusal(root, "Pages/zzz.webp").why


def test_a_folder_that_grew_is_looked_at_again(root):
    assert "exists" not in refusal(root, "new_page.png").why
    (root / "new_pages.png").write_bytes(b"x")
    os.utime(root, (1, 1))
    assert "new_pages.png" in refusal(root, "new_page.png").why
