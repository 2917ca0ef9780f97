"""The wings of the package: who may import whom, and where the tests of a file are."""

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.source_tree import MODULES, PACKAGE, ROOT, imports_of, module_name

# From the ground up: a wing may import from those above it in this list, and from its
# own line. The reasons are in docs/design.md.
WINGS = (
    ("checks", "files"),
    ("tasks", "training"),
    ("autodiff",),
    ("backends",),
    ("networks", "losses", "maml"),
    ("variants",),
    ("learner", "gradcheck"),
    ("rl",),
    ("paper",),
)
FLOORS = {wing: floor for floor, wings in enumerate(WINGS) for wing in wings}
# `get_backend` imports a backend when it is asked for it: Numba and CuPy are optional.
LAZY = "tinymaml.backends"


def wing_of(module: str) -> str:
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


def circle_in(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """The modules of an import circle, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def upward_imports(graph: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """Imports from a wing into one that stands higher."""
    return [
        (module, target)
        for module, targets in graph.items()
        for target in targets
        if FLOORS[wing_of(target)] > FLOORS[wing_of(module)]
    ]


def test_every_module_belongs_to_a_wing() -> None:
    assert {wing_of(module) for module in import_graph()} == {*FLOORS}


def test_there_is_no_import_circle() -> None:
    assert circle_in(import_graph()) == []


def test_no_wing_imports_from_a_higher_one() -> None:
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
        if wing_of(module) == "tasks":
            assert {wing_of(target) for target in targets} <= allowed, module


def test_a_circle_would_be_found() -> None:
    graph = import_graph()
    graph["tinymaml.autodiff.tape"] |= {"tinymaml.maml"}
    assert {"tinymaml.autodiff.tape", "tinymaml.maml"} <= {*circle_in(graph)}


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


def test_tests_are_in_the_same_wings() -> None:
    wings = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    extra = {"support", "project", "examples", "benchmarks"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    wings, folders = ({f for f in s if f[0] != "_"} for s in (wings, folders))
    assert folders == wings | extra
