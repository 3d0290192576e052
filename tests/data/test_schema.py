"""A sample that exists is well-formed, and what it says of itself is enough to find it."""

import pickle

import pytest
from PIL import Image

from tests.data.pictures import checkers, encode
from vision_remember.data.images import ImageLimits
from vision_remember.data.schema import IMAGE, DataError, ImageSlot, Problem, Sample, Turn

TURNS = (Turn("user", (IMAGE, "What?")), Turn("assistant", ("42",)))


def test_images_may_be_bytes_or_in_memory_and_come_out_alike():
    for image in (checkers(), encode(checkers())):
        sample = Sample(id="a", images=(image,), turns=TURNS, source="made here")
        [seen] = sample.load_images()
        assert seen.mode == "RGB" and seen.tobytes() == checkers().tobytes()


def test_a_bad_image_is_named_with_sample_place_and_cure():
    sample = Sample(id="a", images=(b"no picture at all",), turns=TURNS, source="t.json#3")
    with pytest.raises(DataError) as caught:
        sample.load_images()
    [problem] = caught.value.problems
    assert problem.where == "t.json#3 (id 'a')" and "image 1 of 1" in problem.why and problem.code == "image.format"
    assert problem.as_dict().keys() == {"code", "where", "why", "fix"}
    large = Sample(id="a", images=(Image.new("RGB", (9, 9)),), turns=TURNS, source="t")
    with pytest.raises(DataError, match="9 x 9 = 81 px, limit 80"):
        large.load_images(limits=ImageLimits(max_pixels=80))


def test_a_slot_is_the_object_and_never_its_spelling():
    with pytest.raises(DataError, match="0 image slots, 1 images"):
        Sample(id="a", images=(checkers(),), turns=(Turn("user", ("<image>",)), TURNS[1]), source="t")
    assert ImageSlot() == IMAGE


def test_errors_and_samples_survive_the_way_out_of_a_loader_worker():
    error = DataError.of([Problem(code="c", where="w", why="y", fix="f")])
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.problems) == (str(error), error.problems)
    assert str(DataError("Caught in worker 0")) == "Caught in worker 0"  # how torch raises it again
    sample = Sample(id="a", images=(b"x",), turns=TURNS, source="t")
    assert pickle.loads(pickle.dumps(sample)) == sample
