"""Mistakes in kernels.cu must be caught by the checks of its kernels.

A mutant is kernels.cu with a part of its text replaced. It is compiled and run in a
grid of several blocks and threads, in a shuffled order. Its name says what goes wrong.
"""

import pytest

from tests.support.kernel_checks import CHECKS, GRID
from tests.support.mutants import survives
from tests.support.running import DTYPES
from tests.support.serial_cupy import WHY_NOT, SerialBackend, serial_backend
from tinymaml.backends.cuda.backend import SOURCE

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
TEXT = SOURCE.read_text(encoding="utf-8") if SOURCE.exists() else ""

MUTANTS = {
    "elementwise": {
        "all threads of a block do the first element": (
            "blockIdx.x * blockDim.x + threadIdx.x",
            "blockIdx.x * blockDim.x",
        ),
        "blocks overlap": (
            "blockIdx.x * blockDim.x + threadIdx.x",
            "blockIdx.x + threadIdx.x",
        ),
        "a thread skips too few elements": (
            "i += gridDim.x * blockDim.x",
            "i += gridDim.x",
        ),
        "a thread stays in its block": (
            "i += gridDim.x * blockDim.x",
            "i += blockDim.x",
        ),
        "all tasks are the first": ("task = blockIdx.y", "task = 0"),
        "tasks are done twice": ("task += gridDim.y", "task += 1"),
        "the last task is missing": (
            "task < tasks; task +=",
            "task + 1 < tasks; task +=",
        ),
        "mul and mul_add are swapped": ("MUL, MUL_ADD", "MUL_ADD, MUL"),
        "sin and cos are swapped": ("SIN, COS", "COS, SIN"),
        "reciprocal and rsqrt are swapped": ("RECIPROCAL, RSQRT", "RSQRT, RECIPROCAL"),
        "relu stops NaN": ("return x <= 0 ? (real)0 : x", "return x > 0 ? x : (real)0"),
        "relu is upside down": (
            "return x <= 0 ? (real)0 : x",
            "return x >= 0 ? (real)0 : x",
        ),
        "gate stops NaN": ("return y <= 0 ? (real)0 : x", "return y > 0 ? x : (real)0"),
        "gate swaps its operands": (
            "return y <= 0 ? (real)0 : x",
            "return x <= 0 ? (real)0 : y",
        ),
        "add_relu adds behind relu": ("return relu(x + y)", "return relu(x) + y"),
        "mul_add does not add": ("return old + x * y", "return x * y"),
        "sub is the wrong way round": ("return x - y", "return y - x"),
        "rsqrt has no reciprocal": ("return 1 / sqrt(x)", "return sqrt(x)"),
        "reciprocal has a sign": ("return 1 / x", "return -1 / x"),
        "broadcast reads x": ("default: return y", "default: return x"),
        "a broadcast has no inner step": ("i / span * inner)", "i / span)"),
        "a broadcast has no inner index": (") + rest_of(i, inner)", ")"),
        "a broadcast has no outer index": (
            "span == n ? 0 : i / span * inner",
            "0",
        ),
        "a broadcast is not repeated": ("if (inner != n) j", "if (false) j"),
        "inner sizes are powers of two": ("size & (size - 1) ? i % size : ", ""),
        "powers of two are one less": (": i & (size - 1)", ": i & size"),
        "x is the first task's": ("op.x[(whole)t * (int)op.x_step + i]", "op.x[i]"),
        "y is the first task's": ("op.y[(whole)t * (int)op.y_step + j]", "op.y[j]"),
        "out is the first task's": (
            "op.out + (whole)t * (int)op.out_step + i",
            "op.out + i",
        ),
        "the last operation is missing": ("k < count; k++", "k + 1 < count; k++"),
        "span and inner are swapped": ("whole span, inner;", "whole inner, span;"),
        "pad loses its first element": ("start <= i &&", "start < i &&"),
        "pad reads one element more": ("i < start + length", "i <= start + length"),
        "pad reads x from its start": (
            "x[task * x_step + i - start]",
            "x[task * x_step + i]",
        ),
        "pad reads the first task": ("x[task * x_step + i - start]", "x[i - start]"),
    },
    "sums": {
        "the first term is missing": (
            "int m = 0; m < terms; m++, p += size) total",
            "int m = 1; m < terms; m++, p += size) total",
        ),
        "the last term is missing": (
            "m < terms; m++, p += size) total",
            "m + 1 < terms; m++, p += size) total",
        ),
        "terms are neighbours": ("p += size) total += *p", "p++) total += *p"),
        "a sum is its last term": ("p += size) total += *p", "p += size) total = *p"),
        "y of products is a neighbour": ("p += size, q += size)", "p += size, q++)"),
        "x of products is a neighbour": ("p += size, q += size)", "p++, q += size)"),
        "products are squares": ("total += *p * *q", "total += *p * *p"),
        "y of products is the first task's": (
            "*q = y + task * y_step + first",
            "*q = y + first",
        ),
        "outer blocks of products overlap": (
            "first = (whole)(i / size) * terms * size",
            "first = (whole)(i / size) * size",
        ),
        "outer blocks overlap": (
            "x_step + (whole)(i / size) * terms * size",
            "x_step + (whole)(i / size) * terms",
        ),
        "all sums are the first": (
            "terms * size + i % size;\n        real",
            "terms * size;\n        real",
        ),
        "blocks of tasks begin late": (
            "whole t = task * terms / tasks",
            "whole t = (task * terms + 1) / tasks",
        ),
        "blocks of tasks are rounded": (
            "t < (task + 1) * terms / tasks",
            "t < (task + 1) * (terms / tasks)",
        ),
        "all elements are the first": ("x[t * x_step + i]", "x[t * x_step]"),
        "blocks are tasks": ("x[t * x_step + i]", "x[task * x_step + i]"),
    },
    "rows": {
        "the smallest is subtracted": ("x[i] > top ? x[i]", "x[i] < top ? x[i]"),
        "the last logit is not compared": (
            "int i = 1; i < n; i++) top",
            "int i = 1; i < n - 1; i++) top",
        ),
        "negative logits overflow": (
            "real top = x[0];\n    for (int i",
            "real top = 0;\n    for (int i",
        ),
        "softmax overflows": (
            "total += to[i] = exp(row[i] - top)",
            "total += to[i] = exp(row[i])",
        ),
        "softmax divides by its last term": (
            "total += to[i] = exp(row[i] - top)",
            "total = to[i] = exp(row[i] - top)",
        ),
        "softmax multiplies": ("to[i] /= total", "to[i] *= total"),
        "rows of a softmax overlap": ("out_step + r * n;", "out_step + r;"),
        "logsumexp overflows": ("total += exp(row[i] - top)", "total += exp(row[i])"),
        "the first logit is subtracted": (
            "return top;\n}\n\nKERNEL softmax",
            "return x[0];\n}\n\nKERNEL softmax",
        ),
        "logsumexp lacks the largest": ("top + log(total)", "log(total)"),
        "logsumexp has the wrong sign": (
            "out[task * out_step + r] = top",
            "out[task * out_step + r] = -top",
        ),
    },
    "convolutions": {
        "patches have no stride down": ("y += stride, to", "y += 1, to"),
        "patches ignore padding above": ("y = u - (int)top;", "y = u;"),
        "patches have no stride across": (
            "column * (int)stride + v - (int)left",
            "column + v - (int)left",
        ),
        "patches have padding above beside": (
            "column * (int)stride + v - (int)left",
            "column * (int)stride + v - (int)top",
        ),
        "patches reach above": ("0 <= y && y < height &&", "y < height &&"),
        "patches reach below": ("0 <= y && y < height &&", "0 <= y &&"),
        "patches lose the first row": (
            "0 <= y && y < height &&",
            "0 < y && y < height &&",
        ),
        "patches reach left": ("0 <= z && z < width ?", "z < width ?"),
        "patches reach right": ("0 <= z && z < width ?", "0 <= z ?"),
        "images are square": ("line = width * depth", "line = height * depth"),
        "pixels have one channel": ("line + z * depth + c", "line + z + c"),
        "all images are the first": ("x_step + n * (int)height * line", "x_step"),
        "rows of patches are one": ("row++, y +=", "row += down, y +="),
        "rows of patches overlap": ("to += across * each)", "to += each)"),
        "images of patches overlap": ("n * down * across * each", "n * across * each"),
        "patches are not indexed": (" + i % (across * each)", ""),
        "kernels are square across": (
            "int v = rest % taps; rest /= taps",
            "int v = rest % taps; rest /= kernel_height",
        ),
        "kernels are square down": (
            "int u = rest % (int)kernel_height; rest /= (int)kernel_height",
            "int u = rest % taps; rest /= taps",
        ),
        "transposed patches reach above": (
            "y + (int)top < u || row >= rows",
            "row >= rows",
        ),
        "transposed patches ignore the stride down": (
            "u < kernel_height; u += step",
            "u < kernel_height; u++",
        ),
        "the first tap down is missing": (
            "u = (y + (int)top) % step",
            "u = (y + (int)top) % step + step",
        ),
        "one row too many": ("|| row >= rows", "|| row > rows"),
        "rows ignore the stride": (
            "row = (y + (int)top - u) / step",
            "row = (y + (int)top - u)",
        ),
        "transposed patches reach left": (
            "z + (int)left < v || column >= columns",
            "column >= columns",
        ),
        "transposed patches ignore the stride across": (
            "v < taps; v += step",
            "v < taps; v++",
        ),
        "the first tap across is missing": (
            "v = (z + (int)left) % step",
            "v = (z + (int)left) % step + step",
        ),
        "one column too many": ("|| column >= columns", "|| column > columns"),
        "taps go up": ("(y + (int)top - u)", "(y + u - (int)top)"),
        "taps go right": ("(z + (int)left - v)", "(z - v)"),
        "outputs are square": (
            "(n * (int)rows + row) * (int)columns",
            "(n * (int)rows + row) * (int)rows",
        ),
        "taps are one above the other": (
            "(output * (int)kernel_height + u) * taps + v",
            "(output * taps + v) * (int)kernel_height + u",
        ),
        "nothing is added to": ("accumulate ? *to + total : total", "total"),
        "everything is added to": ("accumulate ? *to + total : total", "*to + total"),
        "patches are the first task's": (
            "*patches = x + task * x_step",
            "*patches = x",
        ),
    },
    "pools": {
        "the last of equals wins": ("here > top ||", "here >= top ||"),
        "the smallest wins": ("here > top ||", "here < top ||"),
        "the last NaN wins": ("(here != here && top == top)", "here != here"),
        "NaN never wins": ("(here != here && top == top)", "false"),
        "only the first row": ("element < size * size", "element < size"),
        "the last element is not compared": (
            "element < size * size",
            "element < size * size - 1",
        ),
        "windows are transposed": (
            "element / size * line + element % size * depth",
            "element % size * line + element / size * depth",
        ),
        "pixels have one channel": (
            "element / size * line + element % size * depth",
            "element / size * line + element % size",
        ),
        "the corner is gathered": (
            "corner + (best / size * width + best % size) * depth",
            "corner",
        ),
        "gathered elements are transposed": (
            "best / size * width + best % size) * depth",
            "best / size + best % size * width) * depth",
        ),
        "x is gathered": ("z[task * z_step + corner", "x[task * x_step + corner"),
        "columns of no window are read": (
            "row < down && column < across",
            "row < down",
        ),
        "rows of no window are read": (
            "row < down && column < across",
            "column < across",
        ),
        "columns are rows": (
            "at_y / size, column = at_x / size",
            "at_y / size, column = at_y / size",
        ),
        "scattered elements are transposed": (
            "(at_y - row * size) * size + at_x - column * size",
            "(at_x - column * size) * size + at_y - row * size",
        ),
        "all but the largest are set": ("if (own ==", "if (own !="),
        "windows are square": (
            "(n * down + row) * across + column) * depth",
            "(n * down + row) * down + column) * depth",
        ),
        "other elements are 1": ("real value = 0;", "real value = 1;"),
    },
    "examples": {
        "one quarter turn is three": (
            "from_y = z; from_z = down - 1 - y; break",
            "from_y = down - 1 - z; from_z = y; break",
        ),
        "two quarter turns mirror": (
            "from_y = down - 1 - y; from_z = down - 1 - z; break",
            "from_y = down - 1 - y; break",
        ),
        "three quarter turns mirror": (
            "from_y = down - 1 - z; from_z = y; break",
            "from_y = z; from_z = y; break",
        ),
        "no image has one quarter turn": ("case 1:", "case 4:"),
        "examples are the first task's": (
            "task * examples + rest / down",
            "rest / down",
        ),
        "turns are of tasks": ("turns[example]", "turns[task]"),
        "images are not looked up": ("numbers[example] * height", "example * height"),
        "images are transposed": (
            "+ from_y) * width + from_z",
            "+ from_z) * width + from_y",
        ),
        "bytes are scaled by 256": ("/ 255", "/ 256"),
        "labels are the first task's": (
            "labels[task * examples + i / ways]",
            "labels[i / ways]",
        ),
        "labels are element numbers": ("== i % ways", "== i"),
        "labels are inverted": ("== i % ways", "!= i % ways"),
    },
    "steps": {
        "a loss is not scaled": (
            "(double)loss[0] * training->scale",
            "(double)loss[0]",
        ),
        "the history has one entry": ("history[(whole)step % length]", "history[0]"),
        "steps are not counted": ("training->step = ++step", "training->step = step"),
        "steps are counted after the rate": (
            "training->step = ++step",
            "training->step = 1 + step",
        ),
        "the second correction is constant": (
            "sqrt(1 - pow(training->beta2, step))",
            "sqrt(1 - training->beta2)",
        ),
        "the second correction has no root": (
            "sqrt(1 - pow(training->beta2, step))",
            "(1 - pow(training->beta2, step))",
        ),
        "the first correction is the second": (
            "(1 - pow(training->beta1, step))",
            "(1 - pow(training->beta2, step))",
        ),
        "the learning rate is 1": (
            "training->rate = training->learning_rate *",
            "training->rate =",
        ),
        "a gradient is not scaled": ("gradient * (real)training->scale", "gradient"),
        "large gradients are not clipped": ("g > most ? most", "g > most ? g"),
        "small gradients get the wrong sign": ("g < -most ? -most", "g < -most ? most"),
        "small gradients are not clipped": ("g < -most ? -most : g", "g"),
        "SGD does not clip": (
            "clipped(gradient[i], training) * (real)training->rate",
            "gradient[i] * (real)training->rate",
        ),
        "SGD climbs": ("theta[i] -= clipped", "theta[i] += clipped"),
        "both moments are one": ("moments + n + i", "moments + i"),
        "the first moment has beta2": ("*first * beta1", "*first * beta2"),
        "the second moment has beta1": ("*second * beta2", "*second * beta1"),
        "the first moment weighs wrong": (
            "(real)(1 - training->beta1)",
            "(real)training->beta1",
        ),
        "the second moment weighs wrong": (
            "(real)(1 - training->beta2)",
            "(real)(1 - training->beta1)",
        ),
        "the second moment is not squared": ("g * g *", "g *"),
        "epsilon is in the root": (
            "(sqrt(*second) + (real)training->epsilon)",
            "sqrt(*second + (real)training->epsilon)",
        ),
        "the second moment has no root": (
            "(sqrt(*second) + (real)training->epsilon)",
            "(*second + (real)training->epsilon)",
        ),
        "Adam has no momentum": ("theta[i] -= *first /", "theta[i] -= g /"),
        "beta1 and beta2 are swapped": (
            "learning_rate, beta1, beta2,",
            "learning_rate, beta2, beta1,",
        ),
    },
    "failures": {
        "an infinite loss passes": ("!(mean - mean == 0)", "mean != mean"),
        "a negative infinite loss passes": (
            "!(mean - mean == 0)",
            "mean > 0 && !(mean - mean == 0)",
        ),
        "a failure is forgotten": (
            "if (!(mean - mean == 0)) training->failed = 1",
            "training->failed = !(mean - mean == 0)",
        ),
        "SGD goes on": ("if (!training->failed)\n        theta", "theta"),
        "Adam goes on": ("if (!training->failed) {", "{"),
        "an infinite gradient passes": (
            "(gradient[i] - gradient[i] == 0 &&",
            "(gradient[i] == gradient[i] &&",
        ),
        "a failed loss is not NaN": ('training->failed ? nan("") : mean', "mean"),
    },
    "overflow": {
        "an infinite square passes": ("&& top - top == 0)", ")"),
        "SGD stops, too": ("training->epsilon > 0 ? g * g : g", "g * g"),
        "what is squared has no scale": (
            "g = clipped(gradient[i], training), top",
            "g = gradient[i], top",
        ),
    },
}
EVERY = {
    f"{check}: {name}": (check, *mutant)
    for check, mutants in MUTANTS.items()
    for name, mutant in mutants.items()
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("check", CHECKS)
def test_unbroken_kernels_pass(check, dtype):
    CHECKS[check](serial_backend(), dtype)
    CHECKS[check](SerialBackend(**GRID), dtype)


@pytest.mark.parametrize(("check", "old", "new"), EVERY.values(), ids=EVERY)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # mutants may make huge numbers
def test_broken_kernel_is_caught(check, old, new):
    assert TEXT.count(old) == 1, f"kernels.cu no longer has one {old!r}"
    backend = SerialBackend(**GRID, source=TEXT.replace(old, new))
    backend.device.launch("sum_tasks", "float64", 1, 1, (0,) * 6)  # it compiles
    assert not survives(lambda: CHECKS[check](backend, "float64"))
