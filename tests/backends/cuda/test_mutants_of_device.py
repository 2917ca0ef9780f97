"""Mistakes in plans and programs for a GPU, and in what cuBLAS is told, must be caught
by named checks."""

import pytest

from tests.support.device_checks import (
    captures,
    chains,
    convolutions,
    divisors,
    grids,
    grows,
    handles,
    later,
    noticed,
    numbers,
    operations,
    parts,
    pools,
    sound,
    sums,
)
from tests.support.mutants import put
from tests.support.serial_cupy import WHY_NOT
from tinymaml.backends.cuda import cublas, device_plan, device_program
from tinymaml.backends.cuda.device_plan import DevicePlan

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

PLAN = {
    "_place_buffers": [
        (sound, "self.instructions = ", "_ = "),
    ],
    "_emit_matmul": [
        (numbers, "a[0] if ta else a[1]", "a[1]"),
        (numbers, "ta, tb, accumulate)", "tb, ta, accumulate)"),
        (numbers, "ta, tb, accumulate)", "ta, tb, 0)"),
        (numbers, "ta, tb, accumulate)", "ta, tb, 1)"),
    ],
    "_conv_shapes": [
        (convolutions, '"conv": (a, node.shape, b)', '"conv": (a, a, b)'),
        (convolutions, "(node.shape, a, b)", "(a, node.shape, b)"),
    ],
    "_emit_conv": [
        (convolutions, "taps, features, 0, 1, 0)", "taps, features, 0, 0, 0)"),
        (convolutions, "taps, features, 0, 1, 0)", "taps, features, 0, 1, 1)"),
        (convolutions, "(*window, accumulate)", "(*window, 0)"),
        (convolutions, "(*window, accumulate)", "(*window, 1)"),
        (convolutions, "taps, 0, 0, accumulate)", "taps, 0, 0, 0)"),
        (convolutions, "places, 1, 0, accumulate)", "places, 1, 0, 0)"),
        (convolutions, "places, 1, 0, accumulate)", "places, 0, 0, accumulate)"),
        (convolutions, "*kernel[:2], *where", "*kernel[1::-1], *where"),
        (convolutions, "*outputs[1:3]", "*outputs[2:0:-1]"),
        (convolutions, '*attributes["padding"]', '*attributes["padding"][::-1]'),
        (convolutions, 'attributes["stride"], *', "1, *"),
        (convolutions, '_once("im2col", first', '_once("im2col", second'),
    ],
    "_select_max_gather": [
        (pools, "node.arguments[1]].shape", "node.arguments[0]].shape"),
        (pools, "for i in node.arguments)", "for i in node.arguments[::-1])"),
    ],
    "_emit": [
        (sums, "groups = outer * middle // terms", "groups = outer"),
        (sums, "(outer, middle // terms, inner)", "(outer, terms, inner)"),
        (sums, "Instruction(kernel, some", 'Instruction("sum", some'),
        (sums, 'self._emit("sum"', "self._emit(kernel"),
    ],
}
FUNCTIONS = {
    "divisor_of": [
        (divisors, "largest >= 8", "largest > 8"),
        (divisors, "largest >= 8", "True"),
        (divisors, "terms % d == 0", "terms % d < 2"),
        (divisors, "LONG_SUM + 1", "LONG_SUM"),
        (divisors, "terms <= LONG_SUM", "terms <= 2 * LONG_SUM"),
    ],
    "chained": [
        (sound, "(*last.reads, last.out, *call.reads)", "(*last.reads, *call.reads)"),
        (sound, "(*last.reads, last.out, *call.reads)", "(last.out, *call.reads)"),
        (sound, "(*last.reads, last.out, *call.reads)", "(*last.reads, last.out)"),
        (numbers, "(*last.links, call)", "(call, *last.links)"),
        (numbers, "(*last.links, call)", "(call,)"),
        (chains, "_joins(call, launches[-1])", "_joins(call, launches[0])"),
    ],
    "_joins": [
        (chains, "if not chain.links or", "if"),
        (chains, "for link in chain.links", "for link in chain.links[1:]"),
        (chains, "_overlap(a, b) and a != b", "_overlap(a, b)"),
    ],
    "extents_read": [
        (chains, "[n, 1]", "[n, n]"),
        (chains, "sizes = [call.sizes[0] * call.sizes[2]]", "pass"),
        (chains, "sizes = [n, call.sizes[0] * call.sizes[2]]", "pass"),
        (chains, "sizes = [n, n]", "sizes = [n, 1]"),
    ],
    "_overlap": [
        (chains, "a.offset + size_a <= b.offset", "a.offset + size_a < b.offset"),
        (chains, "b.offset + size_b <= a.offset", "b.offset + size_b < a.offset"),
        (chains, "a.buffer == b.buffer and", ""),
    ],
}
LAYOUT = {
    "_take": [
        (sound, "-(-size // ALIGNMENT) * ALIGNMENT", "size // ALIGNMENT * ALIGNMENT"),
    ],
    "__init__": [
        (sound, "self._take(plan.size * tasks)", "self._take(plan.size)"),
        (sound, "min(BLOCKS, tasks)", "1"),
        (sound, "size * tasks if each else size", "size"),
        (sound, "Operand(start, 0)", "Operand(start, 1)"),
        (sound, "plan.buffer_size(buffer)", "1"),
    ],
    "_take_inputs": [
        (sound, "size * self.tasks if per_task else size", "size"),
        (sound, "Operand(start, size if per_task else 0)", "Operand(start, size)"),
        (sound, "Operand(start, size if per_task else 0)", "Operand(start, 0)"),
    ],
    "operand": [
        (sound, "self.tasks * self.plan.offsets", "self.plan.offsets"),
        (sound, "self._workspace + ", ""),
        (
            sound,
            "-(-self.plan.buffer_size(buffer) // ALIGNMENT) * ALIGNMENT",
            "ALIGNMENT",
        ),
        (
            sound,
            "Operand(start + offset, step)\n    step",
            "Operand(start, step)\n    step",
        ),
    ],
    "constants": [
        (sound, "self._apart[buffer].start", "0"),
        (sound, "self.plan.buffer_size(buffer)", "1"),
    ],
}
COMMANDS = {
    "_link": [
        (operations, "span, inner = n, n", "span, inner = n, 1"),
        (operations, "inner = 1\n", "inner = n\n"),
        (operations, "x, y = nothing, x", "pass"),
        (operations, "call.sizes[1] * call.sizes[2], ", "call.sizes[2], "),
        (operations, "self._at(call.reads[1])", "self._at(call.reads[0])"),
    ],
    "_product": [
        (numbers, "transpose_a=bool(tb)", "transpose_a=bool(ta)"),
        (numbers, "transpose_b=bool(ta)", "transpose_b=False"),
        (numbers, "lda=k if tb else n", "lda=n"),
        (numbers, "ldb=m if ta else k", "ldb=k"),
        (numbers, "step_a=step_b", "step_a=step_a"),
        (numbers, "step_b=step_a", "step_b=0"),
        (numbers, "more=bool(more)", "more=False"),
        (numbers, "more=bool(more)", "more=True"),
        (numbers, "tasks=self.tasks", "tasks=1"),
    ],
    "_output": [
        (sums, "*into, *read, self.tasks, size", "*into, *read, blocks, size"),
        (sums, "*total, *into, blocks, size", "*total, *into, 1, size"),
        (sums, "size, 1, *total", "size, blocks, *total"),
        (numbers, '"pad", size, self.tasks', '"pad", size, 1'),
    ],
    "_chain": [(numbers, "address, len(rows), n)", "address, 1, n)")],
}
WORK = {
    "work_of": [
        (grids, '("sum", "mul_sum")', '("sum",)'),
        (grids, "sizes[0] * sizes[2]", "sizes[0]"),
        (grids, '("softmax", "logsumexp")', '("logsumexp",)'),
        (grids, "(0, 4, 5, 6, 7, 3)", "(0, 4, 5, 6, 7)"),
        (grids, "(height // size)", "height"),
        (grids, 'sizes[-1] if launch.kernel == "pad" else', ""),
        (grids, "prod(sizes[:4])", "prod(sizes[:3])"),
    ],
}
LOADED = {
    "__init__": [
        (numbers, "self.staging.array[start : start + size] = number", "pass"),
    ],
    "write": [
        (numbers, "self.staging.send()", "pass"),
        (numbers, "start : start + flat.size] = flat", "start] = flat[0]"),
    ],
    "read": [
        (numbers, "layout.outputs[name].start - start", "0"),
        (numbers, "(layout.tasks, *output.shape) if each", "output.shape if each"),
    ],
}
PROGRAM = {
    "_joined": [
        (parts, "sum(arrays[1:], arrays[0])", "sum(arrays[:-1], arrays[-1])"),
        (parts, "sum(arrays[1:], arrays[0])", "arrays[0]"),
        (parts, "np.concatenate(arrays)", "np.concatenate(arrays[::-1])"),
    ],
    "__call__": [
        (parts, "min(start + together, tasks)", "start + together"),
        (parts, "[start:stop] if per_task", "[: stop - start] if per_task"),
        (later, "self._together[tasks] = together", "pass"),
    ],
    "tasks_together": [
        (later, "max(self._size, int(SPARE * all_of_it))", "int(SPARE * all_of_it)"),
        (grows, "// itemsize + self._size", "// itemsize"),
        (parts, "int(SPARE * all_of_it)", "int(all_of_it)"),
        (parts, "-(-tasks // -(-tasks // fit))", "fit"),
        (parts, "range(1, min(tasks, MOST_TASKS) + 1)", "range(1, 2)"),
        (parts, "if fit == 0", "if False"),
    ],
    "_load": [
        (grows, "self._loaded.clear()", "pass"),
        (grows, "self._memory, self._size = None, 0", "pass"),
        (later, "self._memory, self._size = None, 0", "self._memory = None"),
        (captures, "del self._loaded[min(self._loaded)]", "pass"),
        (captures, "del self._loaded[min(self._loaded)]", "self._loaded.clear()"),
        (captures, "min(self._loaded)", "max(self._loaded)"),
        (captures, "if tasks not in self._loaded", "if True"),
    ],
}
CUBLAS = {
    "gemm": [
        (numbers, "TRANSPOSE if t else NO_TRANSPOSE", "NO_TRANSPOSE"),
        (numbers, "for t in g[:2]", "for t in g[1::-1]"),
        (numbers, "(g.m, g.n, g.k)", "(g.n, g.m, g.k)"),
        (numbers, "c_longlong(g.step_a)", "c_longlong(0)"),
        (numbers, "c_longlong(g.step_b)", "c_longlong(0)"),
        (numbers, "c_longlong(g.step_c)", "c_longlong(0)"),
        (numbers, "1 if g.more else 0", "1"),
        (numbers, "1 if g.more else 0", "0"),
        (numbers, "c_int(g.tasks)", "c_int(1)"),
    ],
    "__init__": [
        (handles, "TF32_MATH if tf32 else DEFAULT_MATH", "DEFAULT_MATH"),
        (handles, "TF32_MATH if tf32 else DEFAULT_MATH", "TF32_MATH"),
        (handles, "c_void_p(stream)", "c_void_p(0)"),
        (handles, "c_void_p(workspace)", "c_void_p(stream)"),
        (handles, "c_size_t(WORKSPACE)", "c_size_t(0)"),
    ],
    "_call": [(handles, "status != 0", "status < 0")],
}
OWNERS = [
    (DevicePlan, PLAN),
    (device_plan, FUNCTIONS),
    (device_program, WORK),
    (device_program.Layout, LAYOUT),
    (device_program.Commands, COMMANDS),
    (device_program.Loaded, LOADED),
    (device_program.DeviceProgram, PROGRAM),
    (cublas.Cublas, CUBLAS),
]
EVERY = [
    (owner, name, *mutant)
    for owner, table in OWNERS
    for name, mutants in table.items()
    for mutant in mutants
]
CHECKS = {check for _, _, check, _, _ in EVERY}


@pytest.mark.parametrize("check", CHECKS)
def test_unbroken_backend_passes(check):
    check()


@pytest.mark.parametrize(("owner", "name", "check", "old", "new"), EVERY)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # mutants may make huge numbers
def test_broken_backend_is_caught(monkeypatch, owner, name, check, old, new):
    put(monkeypatch, owner, name, old, new)
    assert noticed(check)
