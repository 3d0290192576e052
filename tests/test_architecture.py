"""The import rules and the safety rules of the package, read from its sources: who may import whom, and what nobody may do.

A rule here is a sentence of the design. A new room gets a line in `ROOMS`; a new heavy package gets a line in `OWNERS`.
"""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vision_remember"
FILES = sorted(PACKAGE.rglob("*.py"))
FRONT = ("vision_remember_cli", "vision_remember_shell")  # beside the package, which takes seconds to import
MODULES = [*FILES, *(ROOT / f"{name}.py" for name in FRONT)]

# Open to every room; they know nothing but these outside packages.
GROUND_FLOOR = {"geometry", "tiling", "plugins", "original", "data.images"}
GROUND_PACKAGES = {"torch", "PIL", "numpy"}

# Room -> the rooms it may import, besides itself and the ground floor.
ROOMS: dict[str, set[str]] = {
    "geometry": set(),
    "tiling": set(),
    "plugins": set(),
    "original": set(),
    "local_attention": set(),
    "projectors": {"local_attention"},
    "refusion": {"local_attention"},
    "model": {"projectors", "refusion"},
    "data": set(),
    "training": {"model", "data"},
    "foundation": {"training", "model", "projectors", "data"},
    "evaluation": {"training", "foundation", "model", "data"},
    "analysis": {"evaluation", "model", "data"},
    "bench": {"evaluation", "training", "model", "data"},
    "serving": {"model"},
    "cli": {"*"},
    "__init__": {"model", "projectors"},
}

# Package -> the files or rooms that own it. Whoever else wants it asks them.
OWNERS: dict[str, set[str]] = {
    "transformers": {
        "model",
        "refusion/attach.py",
        "training",
        "foundation",
        "evaluation",
        "analysis",
        "bench",
        "serving",
        "cli",
    },
    "datasets": {"data"},
    "triton": {"local_attention/triton.py"},
    "gradio": {"serving/demo.py"},
    "fastapi": {"serving/app.py"},
    "ray": {"serving/batch.py"},
    "vllm": {"serving/vllm_plugin.py"},
    "lmms_eval": {"evaluation/lmms_eval.py"},
    "peft": {"training"},
}
# Imported where they happen to be, declared nowhere: as a dependency lmms-eval would replace torch (docs/benchmarks.md).
UNDECLARED = {"lmms_eval"}
NOT_ON_IMPORT = {
    "matplotlib",
    "triton",
    "gradio",
    "fastapi",
    "ray",
    "vllm",
    "lmms_eval",
    "peft",
    "datasets",
    "tensorboard",
}

PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NETWORK = {"requests", "urllib.request", "urllib3", "http.client", "httpx", "httpcore", "aiohttp", "socket", "ftplib"}
UNSAFE_CALLS = {
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "eval",
    "exec",
    "__import__",
}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _room(path: Path) -> str:
    """'projectors' for projectors/mlp.py, 'geometry' for geometry.py, 'cli' for cli.py and its parts."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "cli" if first.startswith("cli") else first


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every imported module of a file as (line, absolute dotted name), imports inside functions included.

    `from a import b` gives `a.b` too, because b may be a module.
    """
    package = ["vision_remember", *path.relative_to(PACKAGE).parent.parts] if path.is_relative_to(PACKAGE) else []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def _calls(tree: ast.Module) -> Iterator[tuple[int, str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


def _within(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_room_imports_only_the_rooms_below_it(path: Path) -> None:
    room = _room(path)
    assert room in ROOMS, f"{_name(path)}: no room named {room!r} in the table of this test"
    allowed = ROOMS[room] | {room}
    for line, module in _imports(path):
        if not module.startswith("vision_remember."):
            continue
        inner = module.removeprefix("vision_remember.")
        target = inner.split(".")[0]
        if "*" in allowed or target in allowed or _within(inner, GROUND_FLOOR):
            continue
        if inner == "data" and any(
            _within(other, {"vision_remember.data.images"}) for at, other in _imports(path) if at == line
        ):
            continue  # `from vision_remember.data import images` names the room on its way to the ground floor
        raise AssertionError(f"{_name(path)}:{line}: {room} may not import {module}")


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_nothing_inside_imports_the_public_top_of_the_package(path: Path) -> None:
    tops = ROOMS.keys() | {"__version__"}
    for line, module in _imports(path):
        if module.startswith("vision_remember.") and _room(path) not in ("cli", "__init__"):
            assert module.split(".")[1] in tops, f"{_name(path)}:{line}: import {module} from the room that defines it"


@pytest.mark.parametrize(
    "path", [path for path in FILES if _room(path) in ("geometry", "tiling", "plugins", "local_attention")], ids=_name
)
def test_the_ground_floor_needs_torch_and_pillow_alone(path: Path) -> None:
    _assert_only(path, GROUND_PACKAGES)


def test_the_image_decoder_needs_pillow_alone() -> None:
    _assert_only(PACKAGE / "data" / "images.py", GROUND_PACKAGES)


@pytest.mark.parametrize("path", [path for path in FILES if _room(path) in ("projectors", "refusion")], ids=_name)
def test_plug_ins_need_torch_alone(path: Path) -> None:
    _assert_only(path, {"torch"} | ({"transformers"} if path.name == "attach.py" else set()))


def _assert_only(path: Path, packages: set[str]) -> None:
    known = packages | set(sys.stdlib_module_names) | {"vision_remember"}
    for line, module in _imports(path):
        assert module.split(".")[0] in known, f"{_name(path)}:{line}: imports {module}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_heavy_packages_are_imported_by_their_owner_alone(path: Path) -> None:
    inner = path.relative_to(PACKAGE).as_posix()
    for line, module in _imports(path):
        owners = OWNERS.get(module.split(".")[0])
        assert owners is None or inner in owners or _room(path) in owners, (
            f"{_name(path)}:{line}: {module} belongs to {owners}"
        )


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_no_pickle_no_network_no_code_from_repositories(path: Path) -> None:
    for line, module in _imports(path):
        assert not _within(module, PICKLES | NETWORK), f"{_name(path)}:{line}: imports {module}"
    tree = _tree(path)
    for line, name, call in _calls(tree):
        assert name not in UNSAFE_CALLS, f"{_name(path)}:{line}: calls {name}"
        for keyword in call.keywords:
            is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            assert keyword.arg not in ("trust_remote_code", "allow_pickle") or is_false, (
                f"{_name(path)}:{line}: sets {keyword.arg}"
            )
            assert not (keyword.arg == "weights_only" and is_false), f"{_name(path)}:{line}: weights_only=False"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert node.attr != "auto_map", f"{_name(path)}:{node.lineno}: uses auto_map"
        if isinstance(node, ast.arg):
            assert node.arg != "trust_remote_code", f"{_name(path)}:{node.lineno}: takes trust_remote_code"


def test_importing_the_package_leaves_heavy_packages_alone() -> None:
    code = f"import sys, vision_remember; print(*sorted({NOT_ON_IMPORT!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_every_outside_package_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    declared = {_distribution(line) for line in [*project["dependencies"], *extras]}
    imports = {"PIL": "pillow", "yaml": "pyyaml"}
    for path in MODULES:
        for line, module in _imports(path):
            package = module.split(".")[0]
            if package in sys.stdlib_module_names or package in UNDECLARED | {"vision_remember", *FRONT}:
                continue
            assert imports.get(package, package) in declared, (
                f"{_name(path)}:{line}: {package} is not in pyproject.toml"
            )


def test_installing_the_package_cannot_replace_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    torch = [line for line in project["dependencies"] if _distribution(line) == "torch"]
    assert torch == ["torch>=2.10"]
    assert not {_distribution(line) for line in project["dependencies"]} & {
        "torchvision",
        "torchaudio",
        "timm",
        "gradio",
        "vllm",
        "ray",
    }


def _distribution(requirement: str) -> str:
    for mark in "[<>=!~; ":
        requirement = requirement.split(mark)[0]
    return requirement


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_file_is_one_idea(path: Path) -> None:
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    limit = {"remember.py": 199, "__init__.py": 150}.get(path.name, 300)
    if path == PACKAGE / "__init__.py":
        limit = 30
    assert num_lines <= limit, f"{_name(path)} has {num_lines} lines, at most {limit}: is it one idea?"
    assert path.stem not in ("utils", "misc", "helpers", "common"), f"{_name(path)}: name it after what it does"


def test_tests_mirror_the_package() -> None:
    """A test file is named after a module, a folder of modules, or a promise of a whole room."""
    promises = {"contract", "families", "generation", "views"}
    promises |= {"compile", "generation_ways", "gpu", "lora", "native", "serve", "streaming"}
    tests = ROOT / "tests"
    for path in tests.rglob("test_*.py"):
        place = path.relative_to(tests)
        name = path.stem.removeprefix("test_")
        twin = PACKAGE / place.parent
        if place.parent == Path("."):
            continue
        assert twin.is_dir(), f"{_name(path)}: no folder {_name(twin)}"
        modules = {module.stem for module in twin.glob("*.py")} | {
            folder.name for folder in twin.iterdir() if folder.is_dir()
        }
        assert name in modules | promises | {twin.name}, f"{_name(path)}: no module named {name} in {_name(twin)}"
    rooms = {_room(path) for path in FILES} - {"__init__"}
    untested = {
        room
        for room in rooms
        if not list(tests.glob(f"{room}/**/test_*.py")) and not (tests / f"test_{room}.py").exists()
    }
    assert not untested, f"rooms without tests: {sorted(untested)}"
