"""Two tapes in Node, by `tape.js`, beside the numba backend, checked and timed.

    python benchmarks/javascript.py             # half a minute; needs Node

There are two works, in float32: one exact meta-gradient of the sinusoid experiment, 25
tasks of 10 + 10 points, and the gradient of one inner step of the 5-way Omniglot
network that comes with the package, on five drawings. Every result is compared with the
numpy backend's in float64 before its times are reported. Node runs in a process of its
own, numba on one thread.

Left out: browsers, which have the same compiler (V8) or one about as good.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Run as a script, Python looks for modules beside the script and not in the root.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tinymaml as tm
from benchmarks import common
from benchmarks.common import Array, Row
from tinymaml.autodiff.derivatives import grad
from tinymaml.backends import javascript
from tinymaml.backends.javascript import exported
from tinymaml.tasks import omniglot, sinusoid
from tinymaml.tasks.episodes import Episodes

TAPE_JS = Path(javascript.__file__).with_name("tape.js")
TIMER = Path(__file__).with_name("javascript.js")
IN_NODE = "tape.js in Node"
TOLERANCE = 1e-4  # of float32: batch normalisation divides by small numbers


class Work(NamedTuple):
    """A tape with its inputs, in float32."""

    name: str
    tape: tm.Tape
    inputs: dict[str, Array]
    order: int


def meta_gradient_of_sinusoids(tasks: int = 25) -> Work:
    """An exact meta-gradient of section 5.1: one inner step, 10 points a set."""
    network, rng = tm.MLP([1, 40, 40, 1]), np.random.default_rng(0)

    def loss(theta: tm.Value, x: tm.Value, y: tm.Value) -> tm.Value:
        return tm.squared_error(network(theta, x), y)

    maml, theta = tm.MAML(loss, alpha=0.01, steps=1, order=2), network.init(rng)
    drawn = sinusoid.sample_tasks(rng, tasks, shots=10)
    inputs = {"theta": theta, "alpha": np.array(0.01, "float32"), **drawn._asdict()}
    return Work(f"sinusoid, {tasks} tasks", maml.tape(theta, drawn), inputs, 2)


def gradient_of_drawings() -> Work:
    """The gradient of the support loss of the 5-way network, on five drawings."""
    start = tm.pretrained("omniglot-5w1s")
    maml = start.recipe.maml(start.network)
    drawn = omniglot.split(omniglot.standin())["test"]
    episodes = Episodes(drawn.images, drawn.labels, ways=5, shots=1, queries=1)
    x, y, _, _ = (array[0] for array in episodes.fixed(seed=0, count=1))
    tape = tm.Tape()
    inputs = {"theta": start.theta, "x": x, "y": y}
    values = [tape.input(name, array.shape) for name, array in inputs.items()]
    loss = maml.loss(*values)
    tape.output("loss", loss)
    tape.output("gradient", grad(loss, values[0]))
    return Work("5-way inner step", tape, inputs, 1)


def reference(work: Work) -> dict[str, Array]:
    """The results of the numpy backend in float64."""
    program = tm.get_backend("numpy").compile(work.tape, "float64")
    return program({name: a.astype("float64") for name, a in work.inputs.items()})


def check(name: str, results: dict[str, Any], expected: dict[str, Array]) -> None:
    """Raise DisagreementError unless all results are the reference's."""
    for key, array in expected.items():
        actual = np.reshape(results[key], array.shape)
        common.check_agreement(f"{name}, {key}", actual, array, TOLERANCE)


def in_node(node: str, work: Work, seconds: float) -> tuple[Row, float]:
    """The times of a work in Node, and how long `tape.js` took to compile it."""
    inputs = {name: array.ravel().tolist() for name, array in work.inputs.items()}
    content = {"tape": exported(work.tape), "inputs": inputs, "seconds": seconds}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "work.json")
        path.write_text(json.dumps(content))
        command: list[str | Path] = [node, TIMER, TAPE_JS, path]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    check(IN_NODE, answer["results"], reference(work))
    return row_of(work, IN_NODE, answer["samples"]), answer["compiling"]


def on_numba(work: Work, seconds: float) -> Row:
    """The times of a work on the numba backend, on one thread."""
    program = tm.get_backend("numba", threads=1).compile(work.tape, "float32")
    check(common.REFERENCE, program(work.inputs), reference(work))
    samples: list[float] = []
    start = time.perf_counter()
    while not samples or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        program(work.inputs)
        samples.append(time.perf_counter() - before)
    return row_of(work, common.REFERENCE, samples)


def row_of(work: Work, implementation: str, samples: list[float]) -> Row:
    """A row of the second half of the samples: before, Node is still compiling."""
    late = samples[len(samples) // 2 :]
    return common.row_of(late, work.name, implementation, work.order, 1, None)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--seconds",
        type=common.positive_float,
        default=5,
        metavar="N",
        help="how long each is timed (default: %(default)s)",
    )
    parser.add_argument(
        "--json",
        type=common.output_file,
        metavar="FILE",
        help="also write the results there",
    )
    options = parser.parse_args(arguments)
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        parser.error("Node is missing: install it from nodejs.org")
    machine = common.describe_machine()
    version = subprocess.run([node, "--version"], capture_output=True, text=True)
    machine["packages"]["node"] = version.stdout.strip()
    common.print_machine(machine)
    rows: list[Row] = []
    for work in (meta_gradient_of_sinusoids(), gradient_of_drawings()):
        row, compiling = in_node(node, work, options.seconds)
        print(f"{work.name}: compiled in {common.milliseconds(compiling)} ms")
        rows += [on_numba(work, options.seconds), row]
    rows = common.with_ratios(rows)
    print("All agree with numpy in float64.\n")
    cells = [[row.work, row.implementation, *common.times_of(row)] for row in rows]
    print(common.markdown_table(["work", "implementation", *common.TIMES], cells))
    if options.json:
        common.write_json(options.json, machine, rows)


if __name__ == "__main__":
    main()
