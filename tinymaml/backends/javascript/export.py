"""A tape as JSON, for a browser: `tape.js`, beside this file, runs what is written.

With this file a loss, its gradient or a whole meta-gradient is recorded in Python and
computed where there is no Python::

    tape = Tape()
    theta, x = tape.input("theta", (3,)), tape.input("x", (3,), per_task=True)
    tape.output("gradient", grad((theta * x).sum(), theta), "sum")
    export(tape, "gradient.json")

    const { compile } = tinymamlTape();                            // tape.js
    const program = compile(JSON.parse(text), "float32");
    program.run({ theta: [1, 2, 3], x: new Float32Array(75) }).gradient   // 25 tasks

A tape is data: a list of operations of a closed table, with numbers and shapes. So it
can be written down, and whoever can compute the table can run it.

Left out: the data. A tape has at most constant arrays; whoever runs it gives the
inputs, row after row.
"""

import json
from math import isfinite
from typing import Any

from tinymaml.autodiff.tape import Tape
from tinymaml.checks import check_kind, check_that
from tinymaml.files import FilePath, check_path, write_atomically

FORMAT = "tinymaml-tape-1"


def export(tape: Tape, file: FilePath) -> None:
    """Write a tape as JSON, for `tape.js`.

    The file is whole or not there: after an error an earlier file of the name is
    unchanged.

    Args:
        tape: the tape to write; what is recorded on it later is not in the file.
        file: the path to write.

    Raises:
        TypeError: `tape` is no Tape, or `file` no path.
        ValueError: the tape has no output, so there is nothing to compute.
        OSError: the file cannot be written.

    >>> import tempfile, pathlib
    >>> tape = Tape()
    >>> theta = tape.input("theta", (3,))
    >>> tape.output("loss", (theta * theta).sum())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export(tape, pathlib.Path(folder, "loss.json"))
    ...     pathlib.Path(folder, "loss.json").read_text()[:30]
    '{"format":"tinymaml-tape-1","n'
    """
    check_path("file", file)
    text = json.dumps(exported(tape), allow_nan=False, separators=(",", ":"))
    with write_atomically(file) as written:
        written.write(text.encode())


def exported(tape: Tape) -> dict[str, Any]:
    """What `export` writes: dictionaries, lists, numbers and strings.

    Nodes are the live ones and the inputs, [primitive, arguments, attributes, shape],
    numbered anew in running order. JSON has no NaN and no infinities, so as attributes
    they are the strings "NaN", "Infinity" and "-Infinity".

    Args:
        tape: the tape to write.

    Returns:
        {"format", "nodes", "inputs", "outputs"}; see `tape.js`.

    Raises:
        TypeError: `tape` is no Tape.
        ValueError: the tape has no output.

    >>> tape = Tape()
    >>> theta = tape.input("theta", (3,))
    >>> tape.output("square", theta * theta, "sum")
    >>> written = exported(tape)
    >>> for node in written["nodes"]:
    ...     print(node)
    ['input', [], {'name': 'theta', 'shape': [3]}, [3]]
    ['mul', [0, 0], {}, [3]]
    >>> print(written["inputs"], written["outputs"])
    {'theta': {'node': 0, 'shape': [3], 'per_task': False}}
    {'square': {'node': 1, 'shape': [3], 'reduction': 'sum'}}
    """
    check_kind("tape", tape, Tape, "a Tape")
    check_that(tape.outputs, "tape", "at least one output", tape)
    # An input that nothing reads is kept: programs of all backends take the same ones.
    given = {placeholder.node for placeholder in tape.inputs.values()}
    number_of = {index: i for i, index in enumerate(sorted({*tape.live(), *given}))}
    nodes = []
    for index in number_of:
        primitive, arguments, attributes, shape = tape.nodes[index]
        reads = [number_of[i] for i in arguments]
        written = {name: as_json(value) for name, value in attributes}
        nodes.append([primitive.name, reads, written, list(shape)])
    ends = {}
    for kind, table in (("inputs", tape.inputs), ("outputs", tape.outputs)):
        ends[kind] = {
            name: end._asdict() | {"node": number_of[end.node], "shape": [*end.shape]}
            for name, end in table.items()
        }
    return {"format": FORMAT, "nodes": nodes, **ends}


def as_json(value: Any) -> Any:
    """An attribute of a node as JSON has it: lists for tuples, text for NaN.

    >>> as_json((3, -0.0, float("-inf")))
    [3, -0.0, '-Infinity']
    """
    if isinstance(value, tuple):
        return [as_json(part) for part in value]
    if isinstance(value, float) and not isfinite(value):
        return json.dumps(value)
    return value
