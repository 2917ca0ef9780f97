"""Mistakes in plans and programs for a GPU, and in what cuBLAS is told, must be caught
by named checks."""

import pytest

from tests.support.device_checks import (
    captures,
    convolutions,
    divisors,
    grids,
    groups,
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
from tinymaml.backends.numba import selection

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

PLAN = {
    "device_plan": [  # buffers are placed as if operations ran one after another
        (
            sound,
            "return place(selection, launches, inputs_in_workspace=False)",
            "plan = place(selection, selection.instructions, False)\n"
            "    plan.instructions = launches\n"
            "    return plan",
        ),
    ],
    "select_library_matmul": [
        (numbers, "shape[0] if ta else shape[1]", "shape[1]"),
        (numbers, "int(ta), int(tb), accumulate)", "int(tb), int(ta), accumulate)"),
        (numbers, "int(tb), accumulate)", "int(tb), 0)"),
        (numbers, "int(tb), accumulate)", "int(tb), 1)"),
    ],
    "select_patch_convolution": [
        (convolutions, "weights, features, 0, 1, 0)", "weights, features, 0, 0, 0)"),
        (convolutions, "weights, features, 0, 1, 0)", "weights, features, 0, 1, 1)"),
        (convolutions, "(*window, accumulate)", "(*window, 0)"),
        (convolutions, "(*window, accumulate)", "(*window, 1)"),
        (convolutions, "weights, 0, 0, accumulate)", "weights, 0, 0, 0)"),
        (convolutions, "pixels, 1, 0, accumulate)", "pixels, 1, 0, 0)"),
        (convolutions, "pixels, 1, 0, accumulate)", "pixels, 0, 0, accumulate)"),
        (convolutions, "*kernel[:2], *steps", "*kernel[1::-1], *steps"),
        (convolutions, "*outputs[1:3]", "*outputs[2:0:-1]"),
        (convolutions, "weights, first, window)", "weights, second, window)"),
    ],
    "select_window_pooling": [
        (pools, "node.arguments[1]].shape", "node.arguments[0]].shape"),
        (pools, "s.reads(node)", "s.reads(node)[::-1]"),
    ],
    "select_long_sum": [
        (sums, "(outer * middle, terms", "(outer, terms"),
        (sums, "middle //= terms", "middle = terms"),
        (sums, "s.emit_scratch(kernel,", 's.emit_scratch("sum",'),
        (sums, 'kernel = "sum"', "pass"),
    ],
    "divisor_of": [
        (divisors, "largest >= 8", "largest > 8"),
        (divisors, "largest >= 8", "True"),
        (divisors, "terms % d == 0", "terms % d < 2"),
        (divisors, "LONG_SUM + 1", "LONG_SUM"),
        (divisors, "terms <= LONG_SUM", "terms <= 2 * LONG_SUM"),
    ],
    "fused_groups": [
        (
            sound,
            "*earlier.reads, earlier.out, *call.reads",
            "*earlier.reads, *call.reads",
        ),
        (sound, "*earlier.reads, earlier.out, *call.reads", "earlier.out, *call.reads"),
        (
            sound,
            "*earlier.reads, earlier.out, *call.reads",
            "*earlier.reads, earlier.out",
        ),
        (numbers, "(*earlier.operations, call)", "(call, *earlier.operations)"),
        (numbers, "(*earlier.operations, call)", "(call,)"),
        (groups, "can_join(call, launches[-1])", "can_join(call, launches[0])"),
    ],
    "can_join": [
        (groups, "if not group.operations or", "if"),
        (groups, "in group.operations:", "in group.operations[1:]:"),
        (groups, "overlap(a, b) and a != b", "overlap(a, b)"),
    ],
    "extents_read": [
        (groups, "[n, 1]", "[n, n]"),
        (groups, "sizes = [call.sizes[0] * call.sizes[2]]", "pass"),
        (groups, "sizes = [n, call.sizes[0] * call.sizes[2]]", "pass"),
        (groups, "sizes = [n, n]", "sizes = [n, 1]"),
    ],
    "overlap": [
        (groups, "a.offset + size_a <= b.offset", "a.offset + size_a < b.offset"),
        (groups, "b.offset + size_b <= a.offset", "b.offset + size_b < a.offset"),
        (groups, "a.buffer == b.buffer and", ""),
    ],
}
SHAPES = {
    "convolution_sizes": [
        (convolutions, '"conv": (a, node.shape, b)', '"conv": (a, a, b)'),
        (convolutions, "(node.shape, a, b)", "(a, node.shape, b)"),
        (convolutions, '*attributes["padding"]', '*attributes["padding"][::-1]'),
        (convolutions, 'attributes["stride"], *', "1, *"),
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
        (sound, "plan.buffer_sizes[buffer]", "1"),
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
            "-(-self.plan.buffer_sizes[buffer] // ALIGNMENT) * ALIGNMENT",
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
        (sound, "self.plan.buffer_sizes[buffer]", "1"),
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
    (device_plan, PLAN),
    (selection, SHAPES),
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
