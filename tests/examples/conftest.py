"""Figures of the examples: composed in every run, painted where a test asks for it."""

import pytest
from matplotlib.figure import Figure


def leave_unpainted(figure, file, **options):
    """Stands in for `Figure.savefig`; what it writes is no PNG."""
    file.write(b"not painted")


@pytest.fixture(autouse=True)
def unpainted(request, monkeypatch):
    """Painting is slow, and only tests that ask for `painted` look at it."""
    if "painted" not in request.fixturenames:
        monkeypatch.setattr(Figure, "savefig", leave_unpainted)


@pytest.fixture
def painted():
    """The figures of this test's runs are painted."""
