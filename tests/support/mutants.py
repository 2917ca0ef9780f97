"""Mutants: one small, plausible mistake in the source of one function.

A suite that accepts a mutant would accept the mistake. A mutant names text that must be
in the source, so it cannot outlive the code that it breaks: if the text is gone, the
test fails and says so.
"""

import inspect
import sys
import textwrap


def mutated(function, old, new):
    """The function, compiled from its source with one piece of text replaced."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__name__} no longer has one {old!r}"
    # Outside of its class a function cannot say super() alone.
    owner = function.__qualname__.partition(".")[0]
    source = source.replace(old, new).replace("super()", f"super({owner}, self)")
    namespace = {}
    exec(compile(source, "<mutant>", "exec"), function.__globals__, namespace)
    return namespace[function.__name__]


def put(monkeypatch, owner, name, old, new):
    """Replace a function or method by a mutant under all of its names: in the class
    that defines it, in every module that imports it, and in tables (named in capitals).
    """
    function = getattr(owner, name)
    mutant = mutated(function, old, new)
    for holder in [*getattr(owner, "__mro__", [owner]), *sys.modules.values()]:
        for alias, value in list(getattr(holder, "__dict__", {}).items()):
            if value is function:
                monkeypatch.setattr(holder, alias, mutant)
            elif isinstance(value, staticmethod) and value.__func__ is function:
                monkeypatch.setattr(holder, alias, staticmethod(mutant))
            elif alias.isupper() and type(value) is dict:
                for key in [key for key, entry in value.items() if entry is function]:
                    monkeypatch.setitem(value, key, mutant)
    assert getattr(owner, name) is mutant


def survives(*checks):
    """Whether all checks pass: a mutant that survives shows a gap in the suite.

    A plan that cannot even be drawn up (LookupError, ValueError) counts as noticed.
    """
    for check in checks:
        try:
            check()
        except (AssertionError, LookupError, ValueError):
            return False
    return True
