"""Helpers for the tests of the examples: load one, run it, read what it writes."""

import importlib.util
import json
import signal
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(FOLDER))  # an example may import its neighbours, as when it is run


def load_example(name):
    """Import an example anew; a test may change the module without side effects."""
    spec = importlib.util.spec_from_file_location(
        f"example_{name}", FOLDER / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def read_strict_json(path):
    """Parse JSON that may not contain NaN or Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def select(results, method, order=None):
    """The rows of one method in results.json."""
    return [r for r in results["rows"] if (r["method"], r["order"]) == (method, order)]


def refusal(module, arguments, capsys):
    """Run an example that must refuse its arguments; return its one-line error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        module.main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "error: " in err and "Traceback" not in err
    return err


def ctrl_c_at_call(number, function):
    """Wrap `function`: its call of this number, from 1, presses Ctrl-C first."""
    calls = iter(range(1, 10**9))

    def wrapped(*arguments, **keywords):
        if next(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return function(*arguments, **keywords)

    return wrapped
