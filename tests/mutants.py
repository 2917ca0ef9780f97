"""Mutants: one small, plausible mistake in the source of one function.

A mutant names text that must be in the source, so it cannot outlive the code it breaks:
if the text is gone, the test fails and says so.
"""

import inspect
import sys
import textwrap


def mutated(function, old, new):
    """The function with a piece of its source replaced."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__name__} no longer has one {old!r}"
    made = {}
    exec(
        compile(source.replace(old, new), "<mutant>", "exec"),
        function.__globals__,
        made,
    )
    return made[function.__name__]


def put(monkeypatch, owner, name, old, new):
    """Put a mutant in the place of a function or method, wherever it was imported."""
    function = getattr(owner, name)
    mutant = mutated(function, old, new)
    for module in [owner, *sys.modules.values()]:
        if getattr(module, "__dict__", {}).get(name) is function:
            monkeypatch.setattr(module, name, mutant)


def survives(*checks):
    """Whether all checks pass: a mutant that survives shows a gap in the suite.

    A plan that cannot even be made (LookupError, ValueError) is noticed as well.
    """
    for check in checks:
        try:
            check()
        except (AssertionError, LookupError, ValueError):
            return False
    return True
