"""The layers of the package: who may import whom, and where the tests of a file are."""

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.source_tree import MODULES, PACKAGE, ROOT, imports_of, module_name

# Subpackages and modules, from the lowest layer to the highest. Each may import from
# its own layer and from lower ones. The reasons are in docs/design.md.
LAYERS = (
    ("checks", "files"),
    ("tasks", "training"),
    ("autodiff",),
    ("backends",),
    ("networks", "losses", "maml", "multi_step_loss"),
    ("learner", "gradcheck", "function"),
    ("variants",),
    ("rl",),
    ("paper",),
    ("__main__",),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
# `get_backend` imports a backend when it is first used: Numba and CuPy are optional.
LAZY = "tinymaml.backends"


def subpackage_of(module: str) -> str:
    """The subpackage, or the module itself if it is in none."""
    return module.split(".")[1]


def import_graph() -> dict[str, set[str]]:
    """Every module with the modules that it imports; `get_backend`'s are left out."""
    graph = {}
    for path in MODULES:
        name = module_name(path)
        graph[name] = {
            target for target, lazy in imports_of(path) if not (lazy and name == LAZY)
        }
    del graph["tinymaml"]  # it imports everything, to offer it under one name
    return graph


def cycle_in(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """The modules of an import cycle, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def upward_imports(graph: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """Imports from a module of a higher layer."""
    return [
        (module, target)
        for module, targets in graph.items()
        for target in targets
        if LAYER_OF[subpackage_of(target)] > LAYER_OF[subpackage_of(module)]
    ]


def test_every_module_belongs_to_a_layer() -> None:
    assert {subpackage_of(module) for module in import_graph()} == {*LAYER_OF}


def test_there_is_no_import_cycle() -> None:
    assert cycle_in(import_graph()) == []


def test_no_layer_imports_from_a_higher_one() -> None:
    assert upward_imports(import_graph()) == []


def test_only_get_backend_imports_backends_lazily() -> None:
    for path in MODULES:
        lazy = {target for target, is_lazy in imports_of(path) if is_lazy}
        if module_name(path) != LAZY:
            assert not lazy & {
                "tinymaml.backends.numpy",
                "tinymaml.backends.numba.backend",
                "tinymaml.backends.cuda.backend",
            }, path


def test_data_sets_do_not_import_the_engine() -> None:
    allowed = {"tasks", "checks", "files"}
    for module, targets in import_graph().items():
        if subpackage_of(module) == "tasks":
            assert {subpackage_of(name) for name in targets} <= allowed, module


def test_a_cycle_would_be_found() -> None:
    graph = import_graph()
    graph["tinymaml.autodiff.tape"] |= {"tinymaml.maml"}
    assert {"tinymaml.autodiff.tape", "tinymaml.maml"} <= {*cycle_in(graph)}


def test_an_upward_import_would_be_found() -> None:
    graph = import_graph()
    graph["tinymaml.autodiff.tape"] |= {"tinymaml.backends.numba.planner"}
    assert upward_imports(graph) == [
        ("tinymaml.autodiff.tape", "tinymaml.backends.numba.planner")
    ]


def place_of_tests(path: Path) -> Path:
    """Where the tests of a file of the package are."""
    place = path.relative_to(PACKAGE)
    return ROOT / "tests" / place.with_name(f"test_{place.name}")


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path.name != "__init__.py"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_every_module_has_a_test_file_of_its_name(path: Path) -> None:
    tests = place_of_tests(path)
    assert tests.exists(), f"{path.relative_to(ROOT)} has no {tests.relative_to(ROOT)}"


def test_tests_are_in_the_same_folders() -> None:
    subpackages = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    extra = {"support", "project", "examples", "benchmarks"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    subpackages, folders = (
        {name for name in names if name[0] != "_"} for names in (subpackages, folders)
    )
    assert folders == subpackages | extra
