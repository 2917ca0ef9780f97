"""`tape.js` as a backend for tests: one Node process, asked over its pipes.

To start Node takes as long as hundreds of small programs, so one process is kept for
all tests. It runs other sources, too: mutants of `tape.js`. Numbers travel as bytes, so
that every NaN and every sign of a zero arrives.
"""

import atexit
import json
import os
import select
import shutil
import struct
import subprocess
import weakref
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import tinymaml.backends.javascript
from tinymaml.backends import Backend, bind_by_merging
from tinymaml.backends.javascript import exported
from tinymaml.checks import check_dtype, check_inputs

TAPE_JS = Path(tinymaml.backends.javascript.__file__).with_name("tape.js")
SERVER = Path(__file__).with_name("node_server.js")
NODE = shutil.which("node") or shutil.which("nodejs")
WHY_NOT = "" if NODE else "Node is missing"
needs_node = pytest.mark.skipif(not NODE, reason=WHY_NOT)
JAVASCRIPT = pytest.param("javascript", marks=needs_node)
SECONDS = 60  # for one answer: a mutant may run for ever


class NodeError(ValueError):
    """An Error of JavaScript, with its message."""


class Node:
    """A Node process that runs sources like `tape.js`."""

    def __init__(self):
        self.process = subprocess.Popen(
            [NODE, SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        atexit.register(self.close)
        self.dropped = []  # programs that nothing uses any more

    def close(self):
        self.process.kill()
        self.process.communicate()

    def ask(self, what, numbers=b"", **request):
        """The answer (dict, bytes) to a request with numbers as bytes."""
        dropped = self.dropped[:]
        del self.dropped[: len(dropped)]  # programs hold this list: it stays the same
        text = json.dumps({"what": what, "dropped": dropped, **request}).encode()
        head = struct.pack("<II", len(text), len(numbers))
        self.process.stdin.write(head + text + numbers)
        self.process.stdin.flush()
        lengths = struct.unpack("<II", self._read(8))
        answer, numbers = json.loads(self._read(lengths[0])), self._read(lengths[1])
        if "error" in answer:
            raise NodeError(answer["error"])
        return answer, numbers

    def _read(self, count):
        """So many bytes of the answer."""
        pipe, chunks = self.process.stdout.fileno(), []
        while count:
            if not select.select([pipe], [], [], SECONDS)[0]:
                break
            chunks.append(os.read(pipe, min(count, 2**20)))
            count -= len(chunks[-1])
            if not chunks[-1]:
                break
        if count:
            self.close()
            node.cache_clear()  # the next test gets a new process
            raise AssertionError("Node ended, or gave no answer")
        return b"".join(chunks)


@cache
def node():
    """The process that all tests share."""
    return Node()


class NodeBackend(Backend):
    """Runs tapes with a source, by default `tape.js` itself."""

    name = "javascript"
    threads = 1

    def __init__(self, source=None):
        source = TAPE_JS.read_text(encoding="utf-8") if source is None else source
        self.node = node()
        self.source = self.node.ask("load", source=source)[0]["number"]

    def primitives(self):
        """The names in the source's table."""
        return self.node.ask("primitives", source=self.source)[0]["names"]

    def compile(self, tape, dtype):
        return NodeProgram(self, tape, check_dtype(dtype))


class NodeProgram:
    """A tape that Node has compiled."""

    def __init__(self, backend, tape, dtype):
        self.tape, self.dtype, self.node = tape.snapshot(), dtype, backend.node
        request = {"source": backend.source, "tape": exported(tape)}
        self.number = self.node.ask("compile", **request, dtype=str(dtype))[0]["number"]
        weakref.finalize(self, self.node.dropped.append, self.number)

    def __call__(self, inputs):
        tasks = check_inputs(self.tape.inputs, self.dtype, inputs) or 1
        lengths = [(name, np.size(array)) for name, array in inputs.items()]
        numbers = b"".join(np.ascontiguousarray(a).tobytes() for a in inputs.values())
        answer, numbers = self.node.ask(
            "run", numbers, program=self.number, lengths=lengths
        )
        vector, results = np.frombuffer(numbers, self.dtype), {}
        for name in answer["names"]:
            _, shape, reduction = self.tape.outputs[name]
            shape = (tasks, *shape) if reduction == "each" else shape
            results[name], vector = np.split(vector, [int(np.prod(shape))])
            results[name] = results[name].reshape(shape)
        assert not vector.size
        return results

    bind = bind_by_merging


@cache
def _backend_on(process):
    return NodeBackend()


def javascript_backend():
    """The backend of `tape.js`, or skip the test with the reason why there is none."""
    if not NODE:
        pytest.skip(WHY_NOT)
    return _backend_on(node())
