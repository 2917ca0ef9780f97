"""Every row of the table of primitives, on every backend, at orders 0 to 3."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.primitive_cases import CASES
from tests.support.primitive_checks import (
    check_agreement,
    check_derivatives,
    check_values,
)
from tests.support.running import BACKENDS, DTYPES
from tinymaml.autodiff.primitives import PRIMITIVES
from tinymaml.autodiff.tape import Tape

fewer = settings(max_examples=settings().max_examples // 2)  # the odd shapes are there
seeds = st.integers(0, 2**16)
every_row = pytest.mark.parametrize("row", CASES)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def test_cases_cover_every_row_of_the_table():
    assert CASES.keys() == PRIMITIVES.keys()


@every_row
@every_backend
def test_primitive_values_are_those_of_plain_numpy_at_odd_shapes(row, backend):
    for seed, (shapes, attributes) in enumerate(CASES[row].odd):
        check_values(row, shapes, attributes, seed, backend)


@every_row
@every_backend
@fewer
@given(data=st.data(), seed=seeds)
def test_primitive_values_are_those_of_plain_numpy(row, backend, data, seed):
    check_values(row, *data.draw(CASES[row].drawn), seed, backend)


@every_row
@every_backend
def test_primitive_derivatives_are_finite_differences_at_odd_shapes(row, backend):
    for seed, (shapes, attributes) in enumerate(CASES[row].odd):
        check_derivatives(row, shapes, attributes, seed, backend)


@every_row
@every_backend
@fewer
@given(data=st.data(), seed=seeds)
def test_primitive_derivatives_are_finite_differences(row, backend, data, seed):
    check_derivatives(row, *data.draw(CASES[row].drawn), seed, backend)


@every_row
@every_dtype
def test_backends_agree_on_primitive_at_odd_shapes(row, dtype):
    for seed, (shapes, attributes) in enumerate(CASES[row].odd):
        check_agreement(row, shapes, attributes, seed, dtype)


@every_row
@every_dtype
@fewer
@given(data=st.data(), seed=seeds)
def test_backends_agree_on_primitive(row, dtype, data, seed):
    check_agreement(row, *data.draw(CASES[row].drawn), seed, dtype)


@pytest.mark.parametrize(
    ("row", "shapes", "attributes", "message"),
    [
        ("add", [(2,), (3,)], {}, "shapes must be equal"),
        ("gate", [(2, 1), (2,)], {}, "shapes must be equal"),
        ("logsumexp", [()], {}, "at least one axis"),
        ("matmul", [(2, 3), (2, 3)], {"ta": False, "tb": False}, "inner sizes differ"),
        ("matmul", [(3,), (3, 1)], {"ta": False, "tb": False}, "two matrices"),
        ("sum", [(2, 3)], {"start": 1, "stop": 3}, "no axes"),
        ("sum", [(2, 3)], {"start": 1, "stop": 1}, "no axes"),
        ("broadcast", [(2, 3)], {"start": 1, "sizes": (4,)}, "not 1"),
        ("broadcast", [(1,)], {"start": 0, "sizes": (4, 2)}, "not 1"),
        ("reshape", [(6,)], {"shape": (4,)}, "other size"),
        ("slice", [(6,)], {"start": 2, "stop": 7}, "no elements"),
        ("slice", [(6,)], {"start": 2, "stop": 2}, "no elements"),
        ("slice", [(6, 1)], {"start": 0, "stop": 1}, "no elements"),
        ("pad", [(6,)], {"start": 2, "size": 7}, "does not fit"),
        ("concat", [(6,), (2, 1)], {}, "needs vectors"),
    ],
)
def test_primitive_refuses_shapes_that_do_not_fit(row, shapes, attributes, message):
    tape = Tape()
    arguments = [tape.input(f"x{i}", shape) for i, shape in enumerate(shapes)]
    with pytest.raises(ValueError, match=message):
        tape.record(row, *arguments, **attributes)
