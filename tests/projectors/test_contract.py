"""What every projector must do, for every file of the room and every choice of its options. No projector is named here."""

import contextlib
import dataclasses
import inspect
import itertools
import json
import sys
import textwrap
import typing

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from vision_remember import plugins
from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.projectors import build_projector

C, D = 12, 16
SQUARE = Grid(6, 6)  # divisible by 1, 2, 3 and 6

# Published defaults are for grids of 24x24 and widths of thousands. Whoever has such an option gets it in the size of these tests.
TINY = {
    "patch_grid": (SQUARE.height, SQUARE.width),
    "token_grid": (3, 3),
    "width": 8,
    "depth": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_width": 4,
    "num_queries": 9,
    "num_latents": 9,
}


def variants():
    """Each plug-in with its defaults, and once with every value of every ``Literal`` option."""
    for name in plugins.names("projectors"):
        hints = typing.get_type_hints(plugins.load("projectors", name).Config)
        options = {"type": name, **{key: value for key, value in TINY.items() if key in hints}}
        yield pytest.param(options, id=name)
        for key, hint in hints.items():
            if typing.get_origin(hint) is typing.Literal:
                for value in typing.get_args(hint):
                    yield pytest.param({**options, key: value}, id=f"{name}-{key}={value}")


def pytest_generate_tests(metafunc):
    if "options" in metafunc.fixturenames:
        metafunc.parametrize("options", variants())


def build(options):
    torch.manual_seed(0)
    return build_projector(**options, feature_width=C, text_width=D)


def features(projector, grid=SQUARE, batch=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    levels = {i: torch.randn(batch, grid.num_cells, C, generator=generator).to(dtype) for i in projector.levels}
    return VisionFeatures(levels=levels, grid=grid)


def test_the_config_is_frozen_and_has_defaults_for_everything(options):
    config = plugins.build_config("projectors", options)
    for field in dataclasses.fields(config):
        assert field.kw_only
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, None)


def test_its_options_say_all_that_shapes_it(options):
    projector = build(options)
    kept = json.loads(json.dumps(plugins.complete("projectors", options, projector)))
    assert {**kept, **plugins.listed(options)} == kept, "what was given stays"
    assert None not in kept.values(), "a default may change, a saved model not"
    again = build(kept)
    assert {name: x.shape for name, x in again.state_dict().items()} == {
        name: x.shape for name, x in projector.state_dict().items()
    }


def test_the_number_of_tokens_is_what_tokens_out_says(options):
    projector = build(options)
    grid = projector.tokens_out(SQUARE)
    assert isinstance(grid, Grid) and grid.num_cells <= SQUARE.num_cells
    assert projector(features(projector)).shape == (2, grid.num_cells, D)
    assert projector(features(projector), num_tokens=grid.num_cells).shape == (2, grid.num_cells, D)


@pytest.mark.parametrize("grid", [Grid(4, 6), Grid(5, 7), Grid(7, 5), Grid(1, 6), Grid(9, 6)], ids=str)
def test_an_awkward_grid_works_or_is_refused_by_its_size(options, grid):
    projector = build(options)
    try:
        tokens = projector.tokens_out(grid)
    except ValueError as error:
        assert str(grid) in str(error)
        with pytest.raises(ValueError, match=str(grid)):
            projector(features(projector, grid))
    else:
        assert projector(features(projector, grid)).shape == (2, tokens.num_cells, D)


def test_an_impossible_number_of_tokens_is_refused_with_both_numbers(options):
    projector = build(options)
    with pytest.raises(ValueError, match=r"37|1x37"):
        projector(features(projector), num_tokens=37)


def test_every_parameter_and_every_level_gets_a_gradient(options):
    projector = build(options)
    seen = features(projector)
    for level in seen.levels.values():
        level.requires_grad_()
    projector(seen).square().sum().backward()
    for name, parameter in projector.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    for level in seen.levels.values():
        assert (level.grad.abs().sum((0, 2)) > 0).all(), "every patch must count"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_of_the_module_is_the_dtype_of_the_tokens(options, dtype):
    projector = build(options).to(dtype)
    assert projector(features(projector, dtype=dtype)).dtype is dtype


def test_images_of_one_batch_do_not_see_each_other(options):
    projector = build(options).double().eval()
    both = features(projector, dtype=torch.float64)
    for row in range(2):
        alone = VisionFeatures(levels={i: x[row : row + 1] for i, x in both.levels.items()}, grid=SQUARE)
        torch.testing.assert_close(projector(alone)[0], projector(both)[row])


def test_a_saved_projector_loads_strictly_and_answers_the_same(options):
    projector, other = build(options), build(options)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(projector.state_dict(), strict=True)
    assert torch.equal(projector(features(projector)), other(features(projector)))


def test_nothing_is_kept_on_the_module_between_calls(options):
    projector = build(options)
    before = {name: set(vars(module)) for name, module in projector.named_modules()}
    first = projector(features(projector))
    projector(features(projector, SQUARE, batch=3))
    assert {name: set(vars(module)) for name, module in projector.named_modules()} == before
    assert torch.equal(projector(features(projector)), first)


def test_the_graph_is_whole_under_dynamo(options):
    projector = build(options).eval()
    compiled = torch.compile(projector, backend="eager", fullgraph=True)
    assert torch.equal(compiled(features(projector)), projector(features(projector)))


def test_checkpointed_activations_give_the_same_gradients(options):
    gradients = []
    for run in (lambda projector, seen: projector(seen), lambda *call: checkpoint(*call, use_reentrant=False)):
        projector = build(options)
        run(projector, features(projector)).square().sum().backward()
        gradients.append([parameter.grad for parameter in projector.parameters()])
    assert all(torch.equal(kept, recomputed) for kept, recomputed in zip(*gradients, strict=True))


def test_no_image_gives_no_token(options):
    projector = build(options)
    tokens = projector(features(projector, batch=0))
    assert tokens.shape == (0, projector.tokens_out(SQUARE).num_cells, D)
    tokens.sum().backward()


def test_the_weights_of_an_original_are_refused_where_they_do_not_fit(options):
    projector = build(options)
    if not hasattr(projector, "load_original"):
        pytest.skip("not published elsewhere")
    before = {name: value.clone() for name, value in projector.state_dict().items()}
    with pytest.raises(ValueError, match="missing: .*\n  unexpected: no_such_weight"):
        projector.load_original({"no_such_weight": torch.zeros(1)})
    assert all(torch.equal(value, before[name]) for name, value in projector.state_dict().items())


def test_the_origin_is_stated_as_the_list_shows_it(options):
    assert isinstance(plugins.origin("projectors", options["type"]), plugins.Origin)
    assert plugins.load("projectors", options["type"]).__doc__


def test_an_unknown_option_is_refused(options):
    with pytest.raises(ValueError, match=f"projectors/{options['type']} has no option 'sclae'"):
        build({**options, "sclae": 2})


def test_the_grid_matters(options):
    """Features on a transposed grid are another image: a projector that ignores the grid would not notice."""
    projector = build(options).double()
    if projector.tokens_out(SQUARE) == SQUARE:
        pytest.skip("every patch keeps its own token")
    seen = features(projector, dtype=torch.float64)
    mixed = VisionFeatures(levels={i: x.flip(1) for i, x in seen.levels.items()}, grid=SQUARE)
    if torch.allclose(projector(mixed), projector(seen)):
        pytest.skip("the patches are a set to it")
    outputs = []
    for grid in (Grid(12, 6), Grid(6, 12)):
        try:
            outputs.append(projector(features(projector, grid, dtype=torch.float64)))
        except ValueError:
            pytest.skip(f"refuses grid {grid}")
    assert outputs[0].shape != outputs[1].shape or not torch.allclose(*outputs)


DROPPED_IN = """
    '''The mean of all patches, as often as asked for.'''

    from dataclasses import dataclass

    from torch import nn

    from vision_remember.geometry import Grid


    @dataclass(frozen=True, kw_only=True)
    class Config:
        level: int = -2


    class Projector(nn.Module):
        def __init__(self, config, feature_width, text_width):
            super().__init__()
            self.levels, self.linear = (config.level,), nn.Linear(feature_width, text_width)

        def tokens_out(self, grid, num_tokens=None):
            if num_tokens not in (None, 1):
                raise ValueError(f"makes 1 token of a {grid} grid, not {num_tokens}")
            return Grid(1, 1)

        def forward(self, features, num_tokens=None):
            self.tokens_out(features.grid, num_tokens)
            return self.linear(features.level(self.levels[0]).mean(1, keepdim=True))
"""


def test_one_file_in_a_plugin_package_is_found_and_passes_every_test_above(tmp_path, monkeypatch):
    folder = tmp_path / "lab_of_one_file"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "mean_of_all.py").write_text(textwrap.dedent(DROPPED_IN))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_packages", {"projectors": ["lab_of_one_file"]})
    try:
        found = [variant.values[0] for variant in variants() if variant.id == "mean_of_all"]
        assert found == [{"type": "mean_of_all"}]
        passed = 0
        for check, arguments in checks():
            with contextlib.suppress(pytest.skip.Exception):
                check(options=found[0], **arguments)
                passed += 1
        assert passed >= 15
    finally:
        for name in [name for name in sys.modules if name.startswith("lab_of_one_file")]:
            del sys.modules[name]


def checks():
    """Every test of this file that takes options, with each of its own parameters."""
    for name, check in globals().items():
        if name.startswith("test_") and "options" in inspect.signature(check).parameters:
            marks = [mark.args for mark in vars(check).get("pytestmark", ()) if mark.name == "parametrize"]
            for values in itertools.product(*(choices for _, choices in marks)):
                yield check, dict(zip((key for key, _ in marks), values, strict=True))
