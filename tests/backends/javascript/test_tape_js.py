"""`tape.js` computes what the NumPy backend computes, in a page as in Node.

The tables of tests/autodiff/test_primitives.py and the random programs run it, too.
Here are whole meta-gradients, the promises about infinite numbers, the interface that a
page calls, and mutants of its text.
"""

import gc
import json
import re
import subprocess

import numpy as np
import pytest
from scipy import special

import tinymaml as tm
from tests.support import maml_problems, policy_problems
from tests.support.image_problems import (
    image_problem,
    pooled_network,
    strided_network,
)
from tests.support.mutants import survives
from tests.support.node_backend import (
    NODE,
    TAPE_JS,
    NodeBackend,
    NodeError,
    javascript_backend,
    needs_node,
)
from tests.support.primitive_cases import CASES
from tests.support.primitive_checks import check_agreement, check_values
from tests.support.running import (
    AGREE,
    DTYPES,
    assert_backends_agree,
    assert_close,
    run_tape,
)
from tinymaml.autodiff import functions
from tinymaml.autodiff.tape import PRIMITIVES, Primitive, Tape
from tinymaml.backends.javascript import exported
from tinymaml.tasks import sinusoid

SOURCE = TAPE_JS.read_text(encoding="utf-8")
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
both_orders = pytest.mark.parametrize("order", [1, 2])


# --- the table ------------------------------------------------------------------------


def names_in(source):
    """The names in the table of a source, read from its text."""
    table = re.search(r"const PRIMITIVES = \{\n(.*?)\n  \};", source, re.DOTALL)
    return re.findall(r"^    (\w+): \{", table[1], re.MULTILINE)


def check_the_table(source):
    assert sorted(names_in(source)) == sorted(PRIMITIVES)


def test_tape_js_knows_every_primitive():
    check_the_table(SOURCE)


@needs_node
def test_the_table_in_the_text_is_the_table_that_runs():
    assert javascript_backend().primitives() == names_in(SOURCE)


def test_a_primitive_that_tape_js_lacks_is_noticed(monkeypatch):
    monkeypatch.setitem(PRIMITIVES, "square", type("Square", (Primitive,), {}))
    assert not survives(lambda: check_the_table(SOURCE))


@pytest.mark.parametrize("primitive", ["add", "conv_weight", "concat"])
def test_a_primitive_that_is_taken_out_of_tape_js_is_noticed(primitive):
    mutant = SOURCE.replace(f"    {primitive}: {{", f"    old_{primitive}: {{")
    assert not survives(lambda: check_the_table(mutant))


@needs_node
def test_an_unknown_primitive_is_one_clear_error():
    backend = NodeBackend(SOURCE.replace("    tanh: {", "    old_tanh: {"))
    tape = Tape()
    tape.output("y", tm.tanh(tape.input("x", (3,))))
    message = "exported: expected primitives of the table, got tanh"
    with pytest.raises(NodeError, match=f"^{message}$"):
        backend.compile(tape, "float64")


# --- meta-gradients -------------------------------------------------------------------


def check_meta_gradient(p, backend, dtype, **options):
    """Gradient and losses are those of the numpy backend."""
    p = p.cast(dtype)
    expected, actual = (
        p.maml(b, **options).meta_gradient(p.theta, p.tasks)
        for b in ("numpy", backend or javascript_backend())
    )
    assert actual.gradient.dtype == dtype
    assert_close(actual.gradient, expected.gradient, AGREE[dtype], "gradient")
    assert_close(actual.losses, expected.losses, AGREE[dtype], "losses")


def sinusoid_problem(tasks=5):
    """The network and the tasks of section 5.1."""
    network, rng = tm.MLP([1, 40, 40, 1]), np.random.default_rng(0)

    def loss(theta, x, y):
        return tm.squared_error(network(theta, x), y)

    theta = network.init(rng, "float64")
    drawn = sinusoid.sample_tasks(rng, tasks, shots=10)
    return maml_problems.Problem(loss, theta, drawn).cast("float64")


@every_dtype
@both_orders
def test_meta_gradient_of_the_sinusoid_is_that_of_numpy(order, dtype):
    options = {"steps": 2, "order": order, "alpha": 0.01}
    check_meta_gradient(sinusoid_problem(), None, dtype, **options)


@pytest.mark.parametrize("loss", maml_problems.LOSSES)
@both_orders
def test_meta_gradient_is_its_difference_quotient(loss, order):
    p = maml_problems.problem(loss)
    maml = p.maml(javascript_backend(), steps=2, order=order)

    def objective(theta):
        return maml.evaluate(theta, p.tasks).sum(axis=0)[-1]

    gradient = maml.meta_gradient(p.theta, p.tasks).gradient
    if order == 2:
        maml_problems.assert_is_gradient_of(gradient, objective, p.theta)
    else:  # the quotient is that of the exact gradient
        with pytest.raises(AssertionError, match="gradient: off by"):
            maml_problems.assert_is_gradient_of(gradient, objective, p.theta)


@every_dtype
@both_orders
@pytest.mark.parametrize("network", [strided_network, pooled_network])
def test_meta_gradient_of_images_is_that_of_numpy(network, order, dtype):
    p = image_problem(network())
    check_meta_gradient(p, None, dtype, steps=2, order=order, alpha=0.1)


def test_meta_gradient_of_the_omniglot_network_is_that_of_numpy():
    network, rng = tm.OmniglotConv(5, features=8), np.random.default_rng(0)

    def loss(theta, x, y):
        return tm.cross_entropy(network(theta, x), y)

    x = rng.random((1, 5, 28, 28, 1))
    y = np.eye(5)[None]
    theta = network.init(rng, "float64")
    p = maml_problems.Problem(loss, theta, tm.Tasks(x, y, x[:, ::-1].copy(), y))
    check_meta_gradient(p, None, "float64", steps=1, alpha=0.1)


def test_derivatives_of_policies_are_those_of_numpy():
    objectives = [
        policy_problems.problem(backend, steps=2).objective()
        for backend in ("numpy", javascript_backend())
    ]
    theta = policy_problems.problem().theta
    v = np.random.default_rng(3).standard_normal(theta.size)
    results = [
        (o.gradient, o.fisher(v), *o.surrogate_and_kl(theta + 0.1)) for o in objectives
    ]
    for expected, actual in zip(*results, strict=True):
        assert_close(actual, expected, 1e-12)


# --- infinite numbers, equal numbers, long sums ---------------------------------------


@every_dtype
def test_infinite_logits_have_the_logsumexp_and_softmax_of_scipy(dtype):
    inf, nan = np.inf, np.nan
    rows = [[-inf, -inf], [inf, 0], [0, inf], [-inf, 0], [inf, inf], [inf, -inf]]
    rows += [[nan, 0], [0, nan], [nan, inf], [-inf, nan], [3e38, -3e38], [800, 801]]
    logits = np.array(rows, dtype)
    tape = Tape()
    x = tape.input("x", logits.shape)
    tape.output("logsumexp", functions.logsumexp(x))
    tape.output("softmax", functions.softmax(x))
    results = run_tape(tape, {"x": logits}, "javascript", dtype)
    with np.errstate(all="ignore"):
        expected = {
            "logsumexp": np.logaddexp(*logits.T)[:, None],
            "softmax": special.softmax(logits, axis=1),
        }
    for name, array in expected.items():
        close = np.isclose(results[name][0], array, AGREE[dtype], 0, equal_nan=True)
        assert close.all(), name


def max_pool_of(window, backend):
    """(max_gather, max_scatter) of one window of 2 x 2: what is read at the largest of
    1, 2, 3, 4, and where 1 is written."""
    tape = Tape()
    x, a = tape.input("x", (1, 2, 2, 1)), tape.input("a", (1, 2, 2, 1))
    g = tape.constant(1.0, (1, 1, 1, 1))
    tape.output("gather", tape.record("max_gather", a, x, size=2))
    tape.output("scatter", tape.record("max_scatter", g, x, size=2))
    places = np.arange(1.0, 5.0).reshape(1, 2, 2, 1)
    inputs = {"x": np.reshape(window, (1, 2, 2, 1)), "a": places}
    results = run_tape(tape, inputs, backend)
    return results["gather"].item(), results["scatter"].ravel().tolist()


WINDOWS = {  # window: the place of its largest element
    (1, 2, 4, 3): 3,
    (5, 5, 5, 5): 1,
    (1, 7, 7, 7): 2,
    (0.0, -0.0, 0.0, 0.0): 1,
    (-0.0, 0.0, -1, -1): 1,
    (np.nan, 9, np.inf, 9): 1,
    (9, np.inf, np.nan, 9): 3,
    (9, np.nan, np.nan, 9): 2,
    (-np.inf,) * 4: 1,
}


def check_windows(backend):
    for window, place in WINDOWS.items():
        gathered, scattered = max_pool_of(window, backend)
        expected = [float(i == place) for i in range(1, 5)]
        assert (gathered, scattered) == (place, expected), window


def test_the_first_of_equal_elements_and_a_nan_are_largest():
    check_windows("numpy")
    check_windows("javascript")


# --- tasks and buffers ----------------------------------------------------------------


def check_tasks(backend=None, dtype="float64"):
    """What tasks share, what they do not, views, and outputs that are read again."""
    backend = backend or javascript_backend()
    tape = Tape()
    theta, x = tape.input("theta", (6,)), tape.input("x", (2, 3), per_task=True)
    tape.input("unread", (2,))
    shared = tm.tanh(theta) * theta
    head = shared[1:4]
    inner = head[1:3].reshape(2, 1)  # a view of a view
    product = x * shared.reshape(2, 3)
    rows = product @ tape.constant(0.5, (3, 2))
    # Values of one size, one after the other: they take buffers that are free again.
    later = [x.reshape(6)]
    for _ in range(4):
        later.append(tm.tanh(later[-1] * 1.1))
    padded = tape.record("pad", later[-1][2:4], start=1, size=6)
    values = {
        "theta": theta,
        "shared": shared,
        "head": functions.stop_gradient(head),
        "inner": inner + 1.0,
        "product": product,
        "rows": tm.exp(rows) * inner,
        "again": functions.rematerialise(x) - product,
        "second": later[1],
        "padded": padded * 2.0,
        "constant": tape.constant(-3.0, (2,)),
    }
    for name, value in values.items():
        tape.output(f"{name} each", value)
        tape.output(f"{name} sum", value, "sum")
    rng = np.random.default_rng(0)
    for tasks in (1, 4):
        shapes = {"theta": 6, "x": (tasks, 2, 3), "unread": 2}
        inputs = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        assert_backends_agree(tape, inputs, dtype, backend=backend)


@every_dtype
def test_tasks_share_what_does_not_depend_on_them(dtype):
    check_tasks(None, dtype)


def test_a_second_run_does_not_remember_the_first():
    tape = Tape()
    x = tape.input("x", (2, 3, 3, 1), per_task=True)
    w = tape.input("w", (3, 3, 1, 2))
    image = tm.relu(tm.conv2d(x, w))
    tape.output("images", image)
    tape.output("sum", (image * image).sum(), "sum")
    program = javascript_backend().compile(tape, "float64")
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((n, 2, 3, 3, 1)) for n in (3, 1, 3)]
    w = rng.standard_normal((3, 3, 1, 2))
    first, second, third = (program({"x": x, "w": w}) for x in arrays)
    assert np.array_equal(program({"x": arrays[0], "w": w})["images"], first["images"])
    for x, results in zip(arrays, (first, second, third), strict=True):
        expected = run_tape(tape, {"x": x, "w": w})
        for name, array in expected.items():
            assert_close(results[name], array, 1e-13, name)


def test_a_factor_is_rounded_to_the_dtype():
    """1e40 is infinite in float32, and 1e-50 is zero."""
    for factor in (1e40, 1e-50, -1e40, 0.1, np.nan):
        tape = Tape()
        tape.output("product", tape.input("x", (3,)) * factor)
        inputs = {"x": np.array([1e-10, 0.0, 1e20])}
        for dtype in DTYPES:
            expected, result = (
                run_tape(tape, inputs, backend, dtype)["product"]
                for backend in ("numpy", javascript_backend())
            )
            assert np.array_equal(result, expected, equal_nan=True), (factor, dtype)


def test_a_program_that_nothing_uses_is_dropped_in_node():
    tape = Tape()
    tape.output("x", tape.input("x", (1,)))
    backend = javascript_backend()
    program = backend.compile(tape, "float64")
    program({"x": np.zeros(1)})  # other requests have been sent since it was compiled
    number = program.number
    del program
    gc.collect()
    assert number in backend.node.dropped


# --- the interface --------------------------------------------------------------------

PAGE = """
const vm = require("vm"), fs = require("fs");
const text = fs.readFileSync(process.argv[1], "utf8");
// A page has neither modules nor Node; a worker gets the function's text only.
const page = vm.createContext({ Float32Array, Float64Array, ArrayBuffer });
vm.runInContext(text, page);
const worker = vm.createContext({ Float32Array, Float64Array, ArrayBuffer });
const body = vm.runInContext("String(tinymamlTape)", page);
vm.runInContext(`const made = (${body})()`, worker);
const compile = vm.runInContext("made.compile", worker);
const exported = JSON.parse(process.argv[2]);
const program = compile(exported, "float32");
const theta = [1, 2, 3], x = Float64Array.from([1, 0, 0, 0, 1, 0]);
x.toJSON = () => { throw new Error("text of numbers that fit"); };
const first = program.run({ theta, x }), again = program.run({ x, theta: [0, 0, 0] });
function message(act) {
  try { act(); } catch (error) { return error.message; }
  return "";
}
const bare = { format: "tinymaml-tape-2" };
console.log(JSON.stringify({
  kinds: [program, first].map((object) => Object.keys(object)),
  types: Object.values(first).map((array) => array.constructor.name),
  first: Object.values(first).map((array) => [...array]),
  again: Object.values(again).map((array) => [...array]),
  errors: [
    () => program.run({ theta }),
    () => program.run({ theta, x, y: [1] }),
    () => program.run(),
    () => program.run({ theta: [1, 2], x }),
    () => program.run({ theta, x: [1, 2] }),
    () => program.run({ theta, x: [] }),
    () => program.run({ theta: [1, 2, "3"], x }),
    () => program.run({ theta: [[1, 2, 3]], x }),
    () => program.run({ theta: 3, x }),
    () => program.run({ theta: [1, , 3], x }),
    () => program.run({ theta: new BigInt64Array(3), x }),
    () => compile(exported, "float16"),
    () => compile(exported, "toString"),
    () => compile(bare, "float32"),
    () => compile(undefined, "float32"),
  ].map(message),
}));
"""


@needs_node
def test_a_page_and_a_worker_need_nothing_but_the_function():
    tape = Tape()
    theta, x = tape.input("theta", (3,)), tape.input("x", (3,), per_task=True)
    tape.output("products", theta * x)
    tape.output("loss", (theta * x).sum(), "sum")
    run = subprocess.run(
        [NODE, "-e", PAGE, TAPE_JS, json.dumps(exported(tape))],
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(run.stdout)
    assert said["kinds"] == [["run"], ["products", "loss"]]
    assert said["types"] == ["Float32Array"] * 2
    assert said["first"] == [[1, 0, 0, 0, 2, 0], [3]]
    assert said["again"] == [[0] * 6, [0]]
    assert said["errors"] == [
        "inputs: expected theta, x, got theta",
        "inputs: expected theta, x, got theta, x, y",
        "inputs: expected theta, x, got undefined",
        "theta: expected 3 numbers, got 2",
        "x: expected 3 numbers for each task, got 2",
        "x: expected 3 numbers for each task, got 0",
        'theta: expected a flat array of numbers, got [1,2,"3"]',
        "theta: expected a flat array of numbers, got [[1,2,3]]",
        "theta: expected a flat array of numbers, got 3",
        "theta: expected a flat array of numbers, got [1,null,3]",
        "theta: expected a flat array of numbers, got BigInt64Array",
        "dtype: expected float32 or float64, got float16",
        "dtype: expected float32 or float64, got toString",
        "exported: expected a tape of the format tinymaml-tape-1, got tinymaml-tape-2",
        "exported: expected a tape of the format tinymaml-tape-1, got undefined",
    ]


# --- mutants --------------------------------------------------------------------------


def check_primitive(name, backend):
    for seed, (shapes, attributes) in enumerate(CASES[name].odd):
        check_values(name, shapes, attributes, seed, backend)
        check_agreement(name, shapes, attributes, seed, "float64", backend)


def check_kinks(backend):
    """A relu at its kink and at NaN."""
    tape = Tape()
    x = tape.input("x", (4,))
    tape.output("relu", tm.relu(x))
    tape.output("gate", tape.record("gate", tape.constant(2.0, (4,)), x))
    results = run_tape(tape, {"x": np.array([-1.0, 0.0, 3.0, np.nan])}, backend)
    expected = [[0, 0, 3, np.nan], [0, 0, 2, 2]]
    for array, numbers in zip(results.values(), expected, strict=True):
        assert np.array_equal(array[0], numbers, equal_nan=True)


def check_logits(backend):
    tape = Tape()
    x = tape.input("x", (2, 2))
    tape.output("logsumexp", functions.logsumexp(x))
    tape.output("softmax", functions.softmax(x))
    logits = np.array([[800.0, 801.0], [-np.inf, -np.inf]])
    results = run_tape(tape, {"x": logits}, backend)
    assert_close(results["logsumexp"][0, 0], [801 + np.log1p(np.exp(-1))], 1e-14)
    assert results["logsumexp"][0, 1] == -np.inf
    assert_close(results["softmax"][0, 0], special.softmax([0.0, 1.0]), 1e-14)


def check_programs(backend):
    check_tasks(backend)
    check_meta_gradient(maml_problems.problem(), backend, "float64", steps=2)


MUTANTS = {  # what goes wrong: (the check or primitive, old text, new text)
    "sub is the wrong way round": ("sub", "a[i] - b[i]", "b[i] - a[i]"),
    "rsqrt has no root": ("rsqrt", "1 / Math.sqrt(a[i])", "1 / a[i]"),
    "scale adds": ("scale", "a[i] * factor", "a[i] + factor"),
    "a gate is open at the kink": (check_kinks, "x[i] <= 0 ?", "x[i] < 0 ?"),
    "relu stops a NaN": (
        check_kinks,
        "a[i] <= 0 ? 0 : a[i]",
        "a[i] > 0 ? a[i] : 0",
    ),
    "exp overflows": (
        check_logits,
        "top = Math.max(top, a[start + k]);\n          if",
        "top = 0;\n          if",
    ),
    "infinity minus infinity": (
        check_logits,
        "if (Math.abs(top) === Infinity) top = 0;",
        "",
    ),
    "a product forgets the last row": ("matmul", "i < m; i += 2", "i + 1 < m; i += 2"),
    "a row after the last is written": ("conv", "if (!pair) continue;", ""),
    "the last column is lost": ("matmul", "j + q < n ?", "j + q < n - 1 ?"),
    "flags of transposes are swapped": (
        "matmul",
        "ta ? 1 : k, ta ? m : 1",
        "tb ? 1 : k, tb ? m : 1",
    ),
    "a sum leaves out its last term": ("sum", "k < terms; k++", "k < terms - 1; k++"),
    "a broadcast misses a copy": (
        "broadcast",
        "done < all; done *= 2",
        "done < all / 2; done *= 2",
    ),
    "a pad has old numbers around it": (
        check_tasks,
        "{ out.fill(0).set(a, start); }",
        "{ out.set(a, start); }",
    ),
    "a slice starts one too late": (
        "slice",
        "slice: { view: ({ start }) => start }",
        "slice: { view: ({ start }) => start + 1 }",
    ),
    "vectors are joined at the front": (
        "concat",
        "start += vectors[i++].length",
        "i++",
    ),
    "the window has no padding": (
        "conv",
        "stride * i + u - top",
        "stride * i + u",
    ),
    "pixels right of the image are read": ("conv", "q >= 0 && q < width", "q >= 0"),
    "patches of the last image remain": (
        "conv_input",
        "patches.fill(0, 0, pixels * taps);",
        "",
    ),
    "all images are the first": (
        "conv_weight",
        "pack(panels, g, e * pixels * features,",
        "pack(panels, g, 0,",
    ),
    "the last of equal elements wins": (
        check_windows,
        "x[y] > x[best]",
        "x[y] >= x[best]",
    ),
    "a NaN is not largest": (
        check_windows,
        " || (Number.isNaN(x[y]) && !Number.isNaN(x[best]))",
        "",
    ),
    "a window is read one column too far": (
        "max_gather",
        "+ j * side) * channels",
        "+ j * side + 1) * channels",
    ),
    "the last task is lost": (
        check_tasks,
        "task < tasks; task++",
        "task < tasks - 1; task++",
    ),
    "every task is the first": (
        check_tasks,
        "load(given, true, task)",
        "load(given, true, 0)",
    ),
    "a sum is that of the last task": (
        check_tasks,
        "result[k] += value[k]",
        "result[k] = value[k]",
    ),
    "what depends on a task runs once": (
        check_tasks,
        "perTask[i] ||= args.some",
        "perTask[i] &&= args.some",
    ),
    "a view of a view forgets the first": (
        check_tasks,
        "start[first] + view(attributes)",
        "view(attributes)",
    ),
    "a buffer is freed at its first reader": (
        check_programs,
        "Math.max(last[k], time)",
        "last[k] || time",
    ),
    "the buffer of an output is used again": (
        check_programs,
        "last[root[node]] = Infinity;",
        "last[root[node]] += 0;",
    ),
    "a shared buffer is used again by a task": (
        check_programs,
        "perTask[i] && !perTask[k] ? Infinity",
        "false ? Infinity",
    ),
    "a view does not keep its buffer": (
        check_programs,
        "nodes[i][1].map((argument) => root[argument])",
        "nodes[i][1]",
    ),
    "a result takes the buffer of an argument": (
        check_programs,
        "free.delete(buffer);",
        "",
    ),
}


@needs_node
@pytest.mark.parametrize("mutant", MUTANTS)
def test_broken_tape_js_is_caught(mutant):
    check, old, new = MUTANTS[mutant]
    assert SOURCE.count(old) == 1, f"tape.js no longer has one {old!r}"
    backend = NodeBackend(SOURCE.replace(old, new))
    if isinstance(check, str):
        assert not survives(lambda: check_primitive(check, backend))
    else:
        assert not survives(lambda: check(backend))


@needs_node
def test_the_checks_of_mutants_pass_for_tape_js_itself():
    # Those of primitives pass in tests/autodiff/test_primitives.py.
    for check in {check for check, _, _ in MUTANTS.values() if callable(check)}:
        check(javascript_backend())
