"""What every projector must do, for every file of the room and every choice of its options. No projector is named here."""

import dataclasses
import typing

import pytest
import torch

from vision_remember import plugins
from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.projectors import build_projector

C, D = 12, 16
SQUARE = Grid(6, 6)  # divisible by 1, 2, 3 and 6


def variants():
    """Each plug-in with its defaults, and once with every value of every ``Literal`` option."""
    for name in plugins.names("projectors"):
        yield pytest.param({"type": name}, id=name)
        hints = typing.get_type_hints(plugins.load("projectors", name).Config)
        for key, hint in hints.items():
            if typing.get_origin(hint) is typing.Literal:
                for value in typing.get_args(hint):
                    yield pytest.param({"type": name, key: value}, id=f"{name}-{key}={value}")


def build(options):
    torch.manual_seed(0)
    return build_projector(**options, feature_width=C, text_width=D)


def features(projector, grid=SQUARE, batch=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    levels = {i: torch.randn(batch, grid.num_cells, C, generator=generator).to(dtype) for i in projector.levels}
    return VisionFeatures(levels=levels, grid=grid)


pytestmark = pytest.mark.parametrize("options", list(variants()))


def test_the_config_is_frozen_and_has_defaults_for_everything(options):
    config = plugins.build_config("projectors", options)
    for field in dataclasses.fields(config):
        assert field.kw_only
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, None)


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


def test_an_unknown_option_is_refused(options):
    with pytest.raises(ValueError, match=f"projectors/{options['type']} has no option 'sclae'"):
        build({**options, "sclae": 2})


def test_the_grid_matters(options):
    """Features on a transposed grid are another image: a projector that ignores the grid would not notice."""
    projector = build(options)
    if projector.tokens_out(SQUARE) == SQUARE:
        pytest.skip("every patch keeps its own token")
    outputs = []
    for grid in (Grid(12, 6), Grid(6, 12)):
        try:
            outputs.append(projector(features(projector, grid)))
        except ValueError:
            pytest.skip(f"refuses grid {grid}")
    assert not torch.equal(*outputs)
