"""Mistakes in programs for a GPU, and in the arguments of cuBLAS, must be caught.

A mutant is (owner, function, check that must fail, text, replacement); its name says
what goes wrong.
"""

import pytest

from tests.support.device_checks import (
    calls,
    captures,
    grids,
    grows,
    handles,
    later,
    long_products,
    noticed,
    numbers,
    operations,
    parts,
    sound,
    sums,
)
from tests.support.mutants import put
from tests.support.serial_cupy import WHY_NOT
from tinymaml.backends.cuda import cublas, device_program
from tinymaml.backends.cuda.cublas import Cublas
from tinymaml.backends.cuda.device_program import (
    CapturedProgram,
    Commands,
    DeviceProgram,
    Layout,
)

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

LAYOUT = {
    "arrays overlap": (
        "_allocate",
        sound,
        "-(-size // ALIGNMENT) * ALIGNMENT",
        "size // ALIGNMENT * ALIGNMENT",
    ),
    "one task's workspace": (
        "__init__",
        sound,
        "self._allocate(plan.size * tasks)",
        "self._allocate(plan.size)",
    ),
    "one block of tasks": ("__init__", sound, "min(BLOCKS, tasks)", "1"),
    "one task's outputs": (
        "__init__",
        sound,
        'size * tasks if output.reduction == "each" else size',
        "size",
    ),
    "constants differ by task": (
        "__init__",
        sound,
        "Operand(start, 0)",
        "Operand(start, 1)",
    ),
    "constants of one element": ("__init__", sound, "plan.buffer_sizes[buffer]", "1"),
    "one task's inputs": (
        "_allocate_inputs",
        sound,
        "size * self.tasks if per_task else size",
        "size",
    ),
    "shared inputs differ by task": (
        "_allocate_inputs",
        sound,
        "Operand(start, size if per_task else 0)",
        "Operand(start, size)",
    ),
    "inputs per task are shared": (
        "_allocate_inputs",
        sound,
        "Operand(start, size if per_task else 0)",
        "Operand(start, 0)",
    ),
    "buffers lie as for one task": (
        "operand",
        sound,
        "self.tasks * self.plan.offsets",
        "self.plan.offsets",
    ),
    "the workspace begins at 0": ("operand", sound, "self._workspace + ", ""),
    "tasks' buffers overlap": (
        "operand",
        sound,
        "-(-self.plan.buffer_sizes[buffer] // ALIGNMENT) * ALIGNMENT",
        "ALIGNMENT",
    ),
    "views of inputs begin at 0": (
        "operand",
        sound,
        "Operand(start + offset, step)\n    step",
        "Operand(start, step)\n    step",
    ),
    "constants begin at 0": ("constants", sound, "self._outside[buffer].start", "0"),
    "constants have one element": (
        "constants",
        sound,
        "self.plan.buffer_sizes[buffer]",
        "1",
    ),
}
COMMANDS = {
    "plain operands are broadcast": (
        "_operation",
        operations,
        "span, inner = n, n",
        "span, inner = n, 1",
    ),
    "scale reads many numbers": (
        "_operation",
        operations,
        "inner = 1\n",
        "inner = n\n",
    ),
    "broadcast reads x": ("_operation", operations, "x, y = nothing, x", "pass"),
    "the middle is not repeated": (
        "_operation",
        operations,
        "call.sizes[1] * call.sizes[2], ",
        "call.sizes[2], ",
    ),
    "y is x": (
        "_operation",
        operations,
        "self._view(call.reads[1])",
        "self._view(call.reads[0])",
    ),
    "transposes change places": (
        "_product",
        numbers,
        "transpose_a=bool(tb)",
        "transpose_a=bool(ta)",
    ),
    "A is never transposed": (
        "_product",
        numbers,
        "transpose_b=bool(ta)",
        "transpose_b=False",
    ),
    "transposed B has the wrong width": ("_product", numbers, "k if tb else n", "n"),
    "transposed A has the wrong width": ("_product", numbers, "m if ta else k", "k"),
    "factors do not change places": (
        "_product",
        numbers,
        "self._matrix(reads[1]",
        "self._matrix(reads[0]",
    ),
    "B is squared": (
        "_product",
        numbers,
        "self._matrix(reads[0]",
        "self._matrix(reads[1]",
    ),
    "products are never added": (
        "_product",
        numbers,
        "accumulate=bool(accumulate)",
        "accumulate=False",
    ),
    "products are always added": (
        "_product",
        numbers,
        "accumulate=bool(accumulate)",
        "accumulate=True",
    ),
    "products of one task": ("_product", numbers, "tasks=self.tasks", "tasks=1"),
    "all tasks share factors": (
        "_matrix",
        numbers,
        "Matrix(address, columns, step)",
        "Matrix(address, columns, 0)",
    ),
    "tasks are columns apart": (
        "_matrix",
        numbers,
        "Matrix(address, columns, step)",
        "Matrix(address, columns, columns)",
    ),
    "sums of as many tasks as blocks": (
        "_output_commands",
        sums,
        "*source, tasks, size",
        "*source, blocks, size",
    ),
    "the sum of one block": (
        "_output_commands",
        sums,
        "*partial, blocks, size",
        "*partial, 1, size",
    ),
    "as many totals as blocks": (
        "_output_commands",
        sums,
        "size, 1, *target",
        "size, blocks, *target",
    ),
    "the output of one task": (
        "_output_commands",
        numbers,
        '"pad", size, tasks',
        '"pad", size, 1',
    ),
    "one operation of a fused group": (
        "_fused_group",
        numbers,
        "address, len(table), n)",
        "address, 1, n)",
    ),
}
WORK = {
    "products summed have all terms": (grids, '("sum", "mul_sum")', '("sum",)'),
    "sums have no inner": (grids, "sizes[0] * sizes[2]", "sizes[0]"),
    "softmax has a thread an element": (
        grids,
        '("softmax", "logsumexp")',
        '("logsumexp",)',
    ),
    "patches have one channel": (grids, "(0, 5, 6, 7, 3)", "(0, 5, 6, 7)"),
    "pools have all rows": (grids, "(height // size)", "height"),
    "pads have all sizes": (grids, 'sizes[-1] if launch.kernel == "pad" else', ""),
    "images have one channel": (grids, "prod(sizes[:4])", "prod(sizes[:3])"),
}
PARTS = {
    "calls do all tasks' first parts": (
        long_products,
        "tasks=at_once * parts",
        "tasks=parts",
    ),
    "tasks are next to each other": (
        long_products,
        "task * matrix.step * itemsize",
        "task * itemsize",
    ),
    "all calls are of one task": (
        long_products,
        "task * matrix.step * itemsize",
        "0",
    ),
    "parts are tasks": (long_products, "matrix.ld, size)", "matrix.ld, matrix.step)"),
    "tasks always follow each other": (
        long_products,
        "tasks if follow and",
        "tasks if",
    ),
    "calls may do any number": (calls, "tasks * parts <= MOST_TASKS", "True"),
}
CAPTURED = {
    "constants are not sent": (
        "__init__",
        numbers,
        "self.staging.array[start : start + size] = number",
        "pass",
    ),
    "nothing is sent": ("write", numbers, "self.staging.send()", "pass"),
    "one element of an input is sent": (
        "write",
        numbers,
        "start : start + flat.size] = flat",
        "start] = flat[0]",
    ),
    "all outputs are the first": (
        "read",
        numbers,
        "layout.outputs[name].start - start",
        "0",
    ),
    "outputs of one task": (
        "read",
        numbers,
        "(layout.tasks, *output.shape) if each",
        "output.shape if each",
    ),
}
PROGRAM = {
    "parts are added in another order": (
        "_join",
        parts,
        "sum(arrays[1:], arrays[0])",
        "sum(arrays[:-1], arrays[-1])",
    ),
    "only the first part is added": (
        "_join",
        parts,
        "sum(arrays[1:], arrays[0])",
        "arrays[0]",
    ),
    "parts are joined backwards": (
        "_join",
        parts,
        "np.concatenate(arrays)",
        "np.concatenate(arrays[::-1])",
    ),
    "the last part is too long": (
        "__call__",
        parts,
        "min(start + count, tasks)",
        "start + count",
    ),
    "all parts are the first": (
        "__call__",
        parts,
        "[start:stop] if placeholder.per_task",
        "[: stop - start] if placeholder.per_task",
    ),
    "parts change with the free memory": (
        "__call__",
        later,
        "self._tasks_per_run[tasks] = count",
        "pass",
    ),
    "own memory is not enough": (
        "tasks_per_run",
        later,
        "max(self._size, int(MEMORY_FRACTION * available))",
        "int(MEMORY_FRACTION * available)",
    ),
    "own memory is not counted": (
        "tasks_per_run",
        grows,
        "// self.dtype.itemsize + self._size",
        "// self.dtype.itemsize",
    ),
    "all free memory is used": (
        "tasks_per_run",
        parts,
        "int(MEMORY_FRACTION * available)",
        "int(available)",
    ),
    "parts are not equal": (
        "tasks_per_run",
        parts,
        "return ceil(tasks / ceil(tasks / fit))",
        "return fit",
    ),
    "one task at a time": (
        "tasks_per_run",
        parts,
        "range(1, min(tasks, MOST_TASKS) + 1)",
        "range(1, 2)",
    ),
    "no task is too large": ("tasks_per_run", parts, "if fit == 0", "if False"),
    "graphs of freed memory stay": (
        "_capture",
        grows,
        "self._captured.clear()",
        "pass",
    ),
    "memory is freed too late": (
        "_capture",
        grows,
        "self._memory, self._size = None, 0",
        "pass",
    ),
    "freed memory is counted": (
        "_capture",
        later,
        "self._memory, self._size = None, 0",
        "self._memory = None",
    ),
    "all graphs are cached": (
        "_capture",
        captures,
        "del self._captured[min(self._captured)]",
        "pass",
    ),
    "a full cache is emptied": (
        "_capture",
        captures,
        "del self._captured[min(self._captured)]",
        "self._captured.clear()",
    ),
    "the largest graph is dropped": (
        "_capture",
        captures,
        "min(self._captured)",
        "max(self._captured)",
    ),
    "nothing is cached": (
        "_capture",
        captures,
        "if tasks not in self._captured",
        "if True",
    ),
}
CUBLAS = {
    "nothing is transposed": (
        "gemm",
        numbers,
        "TRANSPOSE if t else NO_TRANSPOSE",
        "NO_TRANSPOSE",
    ),
    "transposes are swapped": ("gemm", numbers, "for t in g[:2]", "for t in g[1::-1]"),
    "m and n are swapped": ("gemm", numbers, "(g.m, g.n, g.k)", "(g.n, g.m, g.k)"),
    "all tasks share A": (
        "gemm",
        numbers,
        "_matrix(g.a)",
        "_matrix(g.a._replace(step=0))",
    ),
    "all tasks share B": (
        "gemm",
        numbers,
        "_matrix(g.b)",
        "_matrix(g.b._replace(step=0))",
    ),
    "all tasks share C": (
        "gemm",
        numbers,
        "_matrix(g.c)",
        "_matrix(g.c._replace(step=0))",
    ),
    "products are always added": ("gemm", numbers, "1 if g.accumulate else 0", "1"),
    "products are never added": ("gemm", numbers, "1 if g.accumulate else 0", "0"),
    "products of one task": ("gemm", numbers, "c_int(g.tasks)", "c_int(1)"),
    "factors are never rounded": (
        "__init__",
        handles,
        "TF32_MATH if tf32 else DEFAULT_MATH",
        "DEFAULT_MATH",
    ),
    "factors are always rounded": (
        "__init__",
        handles,
        "TF32_MATH if tf32 else DEFAULT_MATH",
        "TF32_MATH",
    ),
    "the default stream": ("__init__", handles, "c_void_p(stream)", "c_void_p(0)"),
    "the stream is the workspace": (
        "__init__",
        handles,
        "c_void_p(workspace)",
        "c_void_p(stream)",
    ),
    "the workspace is empty": (
        "__init__",
        handles,
        "c_size_t(WORKSPACE)",
        "c_size_t(0)",
    ),
    "errors pass": ("_call", handles, "status != 0", "status < 0"),
}
OWNERS = {
    "layout": (Layout, LAYOUT),
    "commands": (Commands, COMMANDS),
    "threads": (
        device_program,
        {name: ("threads_per_task", *mutant) for name, mutant in WORK.items()},
    ),
    "parts": (
        device_program,
        {name: ("products_of_parts", *mutant) for name, mutant in PARTS.items()},
    ),
    "captured program": (CapturedProgram, CAPTURED),
    "program": (DeviceProgram, PROGRAM),
    "cublas": (Cublas, CUBLAS),
    "matrices": (
        cublas,
        {
            "steps are leading dimensions": (
                "_matrix",
                numbers,
                "c_longlong(step)",
                "c_longlong(ld)",
            )
        },
    ),
}
EVERY = {
    f"{part}: {name}": (owner, *mutant)
    for part, (owner, table) in OWNERS.items()
    for name, mutant in table.items()
}
CHECKS = list(dict.fromkeys(mutant[2] for mutant in EVERY.values()))


@pytest.mark.parametrize("check", CHECKS)
def test_unbroken_program_passes(check):
    check()


@pytest.mark.parametrize(
    ("owner", "function", "check", "old", "new"), EVERY.values(), ids=EVERY
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # mutants may make huge numbers
def test_broken_program_is_caught(monkeypatch, owner, function, check, old, new):
    put(monkeypatch, owner, function, old, new)
    assert noticed(check)
