"""A batch of tasks: its table, its four arrays, and what data sets may import."""

import ast
from pathlib import Path

import numpy as np
import pytest

import tinymaml as tm
from tinymaml.tasks import batch
from tinymaml.tasks.batch import array_table, as_tasks

X, Y = np.zeros((4, 10, 28, 28, 1), "float32"), np.zeros((4, 10, 5), "float32")


def test_tasks_show_the_shapes_and_dtypes_of_their_arrays():
    assert repr(tm.Tasks(X, Y, X[:, :3], Y[:, :3])).splitlines() == [
        "Tasks",
        "  x_support  (4, 10, 28, 28, 1)  float32",
        "  y_support  (4, 10, 5)          float32",
        "  x_query    (4, 3, 28, 28, 1)   float32",
        "  y_query    (4, 3, 5)           float32",
    ]


def test_whatever_is_no_array_is_shown_by_its_type():
    table = array_table("Title", {"a": [1, 2], "bee": np.zeros(3, bool), "c": None})
    assert table.splitlines() == [
        "Title",
        "  a          list",
        "  bee  (3,)  bool",
        "  c          NoneType",
    ]


@pytest.mark.parametrize("kind", [tuple, list])
def test_four_arrays_are_named_in_order(kind):
    arrays = [np.full((1, 1, 1), number) for number in range(4)]
    tasks = as_tasks(kind(arrays))
    assert isinstance(tasks, tm.Tasks)
    assert all(a is b for a, b in zip(tasks, arrays, strict=True))
    assert tasks._fields == ("x_support", "y_support", "x_query", "y_query")


@pytest.mark.parametrize(
    ("tasks", "came"),
    [((X, Y), "2"), ([X] * 5, "5"), (X, "ndarray"), ({}, "dict"), (None, "NoneType")],
)
def test_anything_but_four_arrays_is_refused(tasks, came):
    message = rf"^tasks: expected \(x, y\) for support and query, got {came}$"
    with pytest.raises(ValueError, match=message):
        as_tasks(tasks)


FILES = sorted(Path(batch.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_data_sets_do_not_import_the_engine(path):
    below = ("tinymaml.checks", "tinymaml.files", "tinymaml.tasks")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            assert not name.startswith("tinymaml") or name.startswith(below), name
