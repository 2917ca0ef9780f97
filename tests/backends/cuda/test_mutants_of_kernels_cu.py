"""Mistakes in kernels.cu must be caught by the checks of its kernels.

A mutant is a piece of its text replaced, compiled and run in a grid of several
blocks and threads, in a shuffled order.
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
    "elementwise": [
        # which elements a thread has
        ("blockIdx.x * blockDim.x + threadIdx.x", "blockIdx.x * blockDim.x"),
        ("blockIdx.x * blockDim.x + threadIdx.x", "blockIdx.x + threadIdx.x"),
        ("i += gridDim.x * blockDim.x", "i += gridDim.x"),
        ("i += gridDim.x * blockDim.x", "i += blockDim.x"),
        ("task = blockIdx.y", "task = 0"),
        ("task += gridDim.y", "task += 1"),
        ("task < tasks; task +=", "task + 1 < tasks; task +="),
        # operations
        ("MUL, MUL_ADD", "MUL_ADD, MUL"),
        ("TANH, RECIPROCAL", "RECIPROCAL, TANH"),
        ("return x <= 0 ? (real)0 : x", "return x > 0 ? x : (real)0"),
        ("return x <= 0 ? (real)0 : x", "return x >= 0 ? (real)0 : x"),
        ("return y <= 0 ? (real)0 : x", "return y > 0 ? x : (real)0"),
        ("return y <= 0 ? (real)0 : x", "return x <= 0 ? (real)0 : y"),
        ("return relu(x + y)", "return relu(x) + y"),
        ("return old + x * y", "return x * y"),
        ("return x - y", "return y - x"),
        ("return 1 / sqrt(x)", "return sqrt(x)"),
        ("return 1 / x", "return -1 / x"),
        ("default: return y", "default: return x"),
        # elements of operands
        ("y_step + i / span * inner + i % inner", "y_step + i / span + i % inner"),
        ("y_step + i / span * inner + i % inner", "y_step + i / span * inner"),
        ("y_step + i / span * inner + i % inner", "y_step + i % inner"),
        ("y_step + i / span * inner + i % inner", "y_step + i"),
        ("link.x[task * link.x_step + i]", "link.x[i]"),
        ("link.y[task * link.y_step + i", "link.y[i"),
        ("link.out + task * link.out_step + i", "link.out + i"),
        ("k < count; k++", "k + 1 < count; k++"),
        ("whole span, inner;", "whole inner, span;"),
        # pad
        ("start <= i &&", "start < i &&"),
        ("i < start + length", "i <= start + length"),
        ("x[task * x_step + i - start]", "x[task * x_step + i]"),
        ("x[task * x_step + i - start]", "x[i - start]"),
    ],
    "sums": [
        (
            "int m = 0; m < terms; m++, p += size) total",
            "int m = 1; m < terms; m++, p += size) total",
        ),
        ("m < terms; m++, p += size) total", "m + 1 < terms; m++, p += size) total"),
        ("p += size) total += *p", "p++) total += *p"),
        ("p += size) total += *p", "p += size) total = *p"),
        ("p += size, q += size)", "p += size, q++)"),
        ("p += size, q += size)", "p++, q += size)"),
        ("total += *p * *q", "total += *p * *p"),
        ("*q = y + task * y_step + first", "*q = y + first"),
        (
            "first = (whole)(i / size) * terms * size",
            "first = (whole)(i / size) * size",
        ),
        (
            "x_step + (whole)(i / size) * terms * size",
            "x_step + (whole)(i / size) * terms",
        ),
        ("terms * size + i % size;\n        real", "terms * size;\n        real"),
        ("whole t = task * terms / tasks", "whole t = (task * terms + 1) / tasks"),
        ("t < (task + 1) * terms / tasks", "t < (task + 1) * (terms / tasks)"),
        ("x[t * x_step + i]", "x[t * x_step]"),
        ("x[t * x_step + i]", "x[task * x_step + i]"),
    ],
    "rows": [
        ("x[i] > top ? x[i]", "x[i] < top ? x[i]"),
        ("int i = 1; i < n; i++) top", "int i = 1; i < n - 1; i++) top"),
        ("real top = x[0];\n    for (int i", "real top = 0;\n    for (int i"),
        ("total += to[i] = exp(row[i] - top)", "total += to[i] = exp(row[i])"),
        ("total += to[i] = exp(row[i] - top)", "total = to[i] = exp(row[i] - top)"),
        ("to[i] /= total", "to[i] *= total"),
        ("out_step + r * n;", "out_step + r;"),
        ("total += exp(row[i] - top)", "total += exp(row[i])"),
        ("return top;\n}\n\nKERNEL softmax", "return x[0];\n}\n\nKERNEL softmax"),
        ("top + log(total)", "log(total)"),
        ("out[task * out_step + r] = top", "out[task * out_step + r] = -top"),
    ],
    "convolutions": [
        # im2col
        ("row * (int)stride + u - (int)top", "row + u - (int)top"),
        ("row * (int)stride + u - (int)top", "row * (int)stride + u"),
        ("column * (int)stride + v - (int)left", "column + v - (int)left"),
        ("column * (int)stride + v - (int)left", "column * (int)stride + v - (int)top"),
        ("0 <= y && y < height &&", "y < height &&"),
        ("0 <= y && y < height &&", "0 <= y &&"),
        ("0 <= y && y < height &&", "0 < y && y < height &&"),
        ("0 <= z && z < width;", "z < width;"),
        ("0 <= z && z < width;", "0 <= z;"),
        (
            "((n * height + y) * width + z) * depth + c]\n                   :",
            "((n * height + y) * height + z) * depth + c]\n                   :",
        ),
        (
            "int v = rest % taps; rest /= taps",
            "int v = rest % taps; rest /= kernel_height",
        ),
        (
            "int u = rest % (int)kernel_height; rest /= (int)kernel_height",
            "int u = rest % taps; rest /= taps",
        ),
        # col2im
        ("row < 0 || row % (int)stride", "row % (int)stride"),
        ("row % (int)stride ||", ""),
        ("row / (int)stride >= rows", "row / (int)stride > rows"),
        ("row / (int)stride >= rows", "row >= rows"),
        ("column < 0 || column % (int)stride", "column % (int)stride"),
        ("column % (int)stride ||", ""),
        ("column / (int)stride >= columns", "column / (int)stride > columns"),
        ("y + (int)top - u", "y + u - (int)top"),
        ("z + (int)left - v", "z - v"),
        ("(n * rows + row / stride) * columns", "(n * rows + row / stride) * rows"),
        (
            "(place * kernel_height + u) * kernel_width + v",
            "(place * kernel_width + v) * kernel_height + u",
        ),
        ("more ? *to + total : total", "total"),
        ("more ? *to + total : total", "*to + total"),
        ("x + task * x_step;\n        real total", "x;\n        real total"),
    ],
    "pools": [
        ("here > top ||", "here >= top ||"),
        ("here > top ||", "here < top ||"),
        ("(here != here && top == top)", "here != here"),
        ("(here != here && top == top)", "false"),
        ("place < size * size", "place < size"),
        ("place < size * size", "place < size * size - 1"),
        (
            "place / size * line + place % size * depth",
            "place % size * line + place / size * depth",
        ),
        (
            "place / size * line + place % size * depth",
            "place / size * line + place % size",
        ),
        ("corner + (place / size * width + place % size) * depth", "corner"),
        (
            "place / size * width + place % size) * depth",
            "place / size + place % size * width) * depth",
        ),
        ("z[task * z_step + corner", "x[task * x_step + corner"),
        ("row < down && column < across", "row < down"),
        ("row < down && column < across", "column < across"),
        ("at_y / size, column = at_x / size", "at_y / size, column = at_y / size"),
        (
            "(at_y - row * size) * size + at_x - column * size",
            "(at_x - column * size) * size + at_y - row * size",
        ),
        ("if (own ==", "if (own !="),
        (
            "(n * down + row) * across + column) * depth",
            "(n * down + row) * down + column) * depth",
        ),
        ("real value = 0;", "real value = 1;"),
    ],
    "examples": [
        (
            "from_y = z; from_z = down - 1 - y; break",
            "from_y = down - 1 - z; from_z = y; break",
        ),
        (
            "from_y = down - 1 - y; from_z = down - 1 - z; break",
            "from_y = down - 1 - y; break",
        ),
        ("from_y = down - 1 - z; from_z = y; break", "from_y = z; from_z = y; break"),
        ("case 1:", "case 4:"),
        ("task * examples + rest / down", "rest / down"),
        ("turns[example]", "turns[task]"),
        ("numbers[example] * height", "example * height"),
        ("+ from_y) * width + from_z", "+ from_z) * width + from_y"),
        ("/ 255", "/ 256"),
        ("labels[task * examples + i / ways]", "labels[i / ways]"),
        ("== i % ways", "== i"),
        ("== i % ways", "!= i % ways"),
    ],
    "steps": [
        ("(double)loss[0] * training->scale", "(double)loss[0]"),
        ("history[(whole)step % length]", "history[0]"),
        ("training->step = ++step", "training->step = step"),
        ("training->step = ++step", "training->step = 1 + step"),
        ("sqrt(1 - pow(training->beta2, step))", "sqrt(1 - training->beta2)"),
        ("sqrt(1 - pow(training->beta2, step))", "(1 - pow(training->beta2, step))"),
        ("(1 - pow(training->beta1, step))", "(1 - pow(training->beta2, step))"),
        ("training->rate = training->learning_rate *", "training->rate ="),
        ("gradient * (real)training->scale", "gradient"),
        ("g > most ? most", "g > most ? g"),
        ("g < -most ? -most", "g < -most ? most"),
        ("g < -most ? -most : g", "g"),
        (
            "clipped(gradient[i], training) * (real)training->rate",
            "gradient[i] * (real)training->rate",
        ),
        ("theta[i] -= clipped", "theta[i] += clipped"),
        ("moments + n + i", "moments + i"),
        ("*first * beta1", "*first * beta2"),
        ("*second * beta2", "*second * beta1"),
        ("(real)(1 - training->beta1)", "(real)training->beta1"),
        ("(real)(1 - training->beta2)", "(real)(1 - training->beta1)"),
        ("g * g *", "g *"),
        (
            "(sqrt(*second) + (real)training->epsilon)",
            "sqrt(*second + (real)training->epsilon)",
        ),
        (
            "(sqrt(*second) + (real)training->epsilon)",
            "(*second + (real)training->epsilon)",
        ),
        ("theta[i] -= *first /", "theta[i] -= g /"),
        ("learning_rate, beta1, beta2,", "learning_rate, beta2, beta1,"),
    ],
    "rest": [
        ("!(mean - mean == 0)", "mean != mean"),
        ("!(mean - mean == 0)", "mean > 0 && !(mean - mean == 0)"),
        (
            "if (!(mean - mean == 0)) training->failed = 1",
            "training->failed = !(mean - mean == 0)",
        ),
        ("if (!training->failed)\n        theta", "theta"),
        ("if (!training->failed) {", "{"),
        ("(gradient[i] - gradient[i] == 0)", "(gradient[i] == gradient[i])"),
        ('training->failed ? nan("") : mean', "mean"),
    ],
}
EVERY = [(check, *mutant) for check, mutants in MUTANTS.items() for mutant in mutants]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("check", CHECKS)
def test_unbroken_kernels_pass(check, dtype):
    CHECKS[check](serial_backend(), dtype)
    CHECKS[check](SerialBackend(**GRID), dtype)


@pytest.mark.parametrize(("check", "old", "new"), EVERY)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # mutants may make huge numbers
def test_broken_kernel_is_caught(check, old, new):
    assert TEXT.count(old) == 1, f"kernels.cu no longer has one {old!r}"
    backend = SerialBackend(**GRID, source=TEXT.replace(old, new))
    backend.device.launch("sum_tasks", "float64", 1, 1, (0,) * 6)  # it compiles
    assert not survives(lambda: CHECKS[check](backend, "float64"))
