"""The file name is the key, and options are strict."""

import sys
import textwrap

import pytest

from vision_remember import build_projector, plugins

PLUGIN = """
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class Config:
    width: int
    factor: float = 1.0
    layers: tuple[int, ...] | None = None
    mode: str = "a"
"""


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A plug-in package of one file, in the room of projectors for the time of a test."""
    folder = tmp_path / "outside_plugins"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "dropped_in.py").write_text(textwrap.dedent(PLUGIN))
    (folder / "shared_parts.py").write_text("WIDTH = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_packages", {})
    plugins.add_package("projectors", "outside_plugins")
    yield folder
    for name in [name for name in sys.modules if name.startswith("outside_plugins")]:
        del sys.modules[name]


def build(**options):
    return plugins.build_config("projectors", {"type": "dropped_in", "width": 4, **options})


def test_a_file_dropped_into_a_plugin_package_takes_part_at_once(room):
    assert "dropped_in" in plugins.names("projectors") and "avg_pool" in plugins.names("projectors")
    assert plugins.load("projectors", "dropped_in").__name__ == "outside_plugins.dropped_in"
    assert build().width == 4


def test_a_file_without_a_config_is_no_plugin(room):
    assert "shared_parts" not in plugins.names("projectors")
    assert "attach" not in plugins.names("refusion")


def test_adding_a_package_twice_changes_nothing(room):
    names = plugins.names("projectors")
    plugins.add_package("projectors", "outside_plugins")
    assert plugins.names("projectors") == names


def test_two_files_of_one_name_are_refused(room):
    (room / "avg_pool.py").write_text(textwrap.dedent(PLUGIN))
    with pytest.raises(ValueError, match="two files named 'avg_pool'.*outside_plugins.avg_pool"):
        plugins.names("projectors")


def test_lists_become_tuples_and_whole_numbers_become_floats(room):
    config = build(layers=[1, -2], factor=2)
    assert config.layers == (1, -2) and config.factor == 2.0 and isinstance(config.factor, float)
    assert build(layers=None).layers is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widht": 3}, "no option 'widht'; did you mean 'width'"),
        ({"type": "droped_in"}, "no 'droped_in'; did you mean 'dropped_in'"),
        ({"type": "nothing_like_it"}, "it has avg_pool, "),
        ({"width": "4"}, "width must be int, got '4'"),
        ({"width": True}, "width must be int, got True"),
        ({"width": 4.0}, "width must be int, got 4.0"),
        ({"factor": "x"}, "factor must be float, got 'x'"),
        ({"layers": [1, "2"]}, "layers must be .*tuple.*got"),
        ({"layers": 3}, "layers must be .*tuple.*got 3"),
        ({"mode": None}, "mode must be str, got None"),
    ],
)
def test_a_wrong_option_is_refused_and_the_right_one_named(room, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_missing_option_and_a_missing_type_are_named(room):
    with pytest.raises(ValueError, match="dropped_in needs option 'width'"):
        plugins.build_config("projectors", {"type": "dropped_in"})
    with pytest.raises(ValueError, match="lack 'type'; it is one of avg_pool"):
        plugins.build_config("projectors", {"scale": 3})


def test_a_choice_is_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match="head is 'intern_vl'; did you mean 'internvl'"):
        plugins.build_config("projectors", {"type": "pixel_shuffle", "head": "intern_vl"})


SUBCLASS = """
from dataclasses import dataclass

from vision_remember.projectors import avg_pool

@dataclass(frozen=True, kw_only=True)
class Config:
    scale: int = 2
    gain: float = 1.0

class Projector(avg_pool.AvgPool):
    def __init__(self, config, feature_width, text_width):
        super().__init__(avg_pool.Config(scale=config.scale), feature_width, text_width)
        self.gain = config.gain
"""


def test_the_options_of_a_plugin_that_passes_another_config_to_its_parent_are_kept(room):
    (room / "louder_pool.py").write_text(textwrap.dedent(SUBCLASS))
    options = {"type": "louder_pool", "gain": 3}
    projector = build_projector(**options, feature_width=4, text_width=4)
    assert plugins.complete("projectors", options, projector) == {"type": "louder_pool", "scale": 2, "gain": 3.0}


def test_options_that_json_cannot_give_back_stay_as_they_were_given(room):
    (room / "odd.py").write_text(textwrap.dedent(PLUGIN) + "    size: object = (1, 2)\n    inner: complex = 1j\n")
    options = {"type": "odd", "width": 4, "layers": (1, 2)}
    assert plugins.complete("projectors", options, object()) == {"type": "odd", "width": 4, "layers": [1, 2]}
