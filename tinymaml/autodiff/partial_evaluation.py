"""Partial evaluation: run a part of a tape once, and the remainder for many inputs.

The conjugate gradient method (`rl/trpo.py`) needs products H v with many vectors v, at
the same parameters and data. Part of the tape of H v does not depend on v: the loss,
with all activations, and the gradient. `partially_evaluate` divides a tape into one
that needs no v, and one that starts from the results of the first::

    known, remaining = partially_evaluate(tape, "v")
    residuals = run known(inputs)                     # once
    product = run remaining(inputs, residuals, v)     # for each v

The values that are handed over, here activations and cotangents, are called residuals.
For the policy of 2D navigation there remain for each v 85 % of the operations of a
Hessian-vector product (75 % with tanh in place of relu), and two thirds of those of a
product with the Fisher matrix.

Left out: weighing the memory of a residual against the time to compute it again. What
is cheap (`RECOMPUTED`) is always computed again, everything else is handed over.
"""

from tinymaml.autodiff.tape import Tape, Value
from tinymaml.checks import check_choice

RECOMPUTED = ("full", "reshape", "slice", "broadcast")  # They cost little or nothing.


def partially_evaluate(tape: Tape, unknown: str) -> tuple[Tape, Tape]:
    """Two tapes: what can be computed before one input is given, and what remains.

    unknown: the name of the input that is given later. The outputs of the first tape
    are the residuals, one array per task; they are inputs of the second, under the same
    names. So the first must have as many tasks as the second: an input of each task, if
    the second has one. The second tape has the outputs of `tape`. Each of the two has
    those inputs of `tape` that it reads. `rematerialise` disappears, since it matters
    only while a tape is recorded.

    Raises ValueError when the tape has no input of that name.

    >>> tape = Tape()
    >>> x, v = tape.input("x", (3,)), tape.input("v", (3,))
    >>> tape.output("product", x * x * x * v)
    >>> partially_evaluate(tape, "v")
    (Tape of 3 nodes: x (3,) -> residual3 (3,),
     Tape of 3 nodes: v (3,), residual3 (3,) -> product (3,))
    """
    check_choice("unknown", unknown, tape.inputs)
    known, remaining = _PartOfTape(tape), _PartOfTape(tape)
    dependent = {tape.inputs[unknown].node}  # the nodes that need the unknown input
    for index in tape.live():
        arguments = tape.nodes[index].arguments
        if index in dependent or any(i in dependent for i in arguments):
            dependent.add(index)
            for i in arguments:
                if i not in dependent:
                    _hand_over(i, known, remaining)
            remaining.record(index)
        elif tape.nodes[index].primitive.name != "input":
            known.record(index)  # An input is recorded where it is read.
    for name, output in tape.outputs.items():
        if output.node not in dependent:
            _hand_over(output.node, known, remaining)
        remaining.tape.output(name, remaining.record(output.node), output.reduction)
    return known.tape, remaining.tape


def _hand_over(index: int, known: "_PartOfTape", remaining: "_PartOfTape") -> None:
    """Make the value of a node of the first tape known to the second."""
    node = known.source.nodes[index]
    if index in remaining.values or node.primitive.name == "input":
        return
    if node.primitive.name in (*RECOMPUTED, "rematerialise"):
        for i in node.arguments:
            _hand_over(i, known, remaining)
        return
    value = known.record(index)
    residuals = {output.node: name for name, output in known.tape.outputs.items()}
    if value.index in residuals:
        # Two nodes that differed only by `rematerialise` have become one residual.
        residual = remaining.tape.inputs[residuals[value.index]]
        remaining.values[index] = remaining.tape.value(residual.node)
        return
    name = f"residual{index}"
    known.tape.output(name, value)
    remaining.values[index] = remaining.tape.input(name, node.shape, per_task=True)


class _PartOfTape:
    """A part of the tape `source`, recorded on a tape of its own.

    `values` has the recorded values by their indices on the source.
    """

    def __init__(self, source: Tape) -> None:
        self.source, self.tape = source, Tape()
        self.values: dict[int, Value] = {}

    def record(self, index: int) -> Value:
        """The value of a node of the source, recorded with all that it needs."""
        if index not in self.values:
            node = self.source.nodes[index]
            name, attributes = node.primitive.name, dict(node.attributes)
            arguments = [self.record(i) for i in node.arguments]
            if name == "input":
                per_task = self.source.inputs[attributes["name"]].per_task
                value = self.tape.input(**attributes, per_task=per_task)
            elif name == "rematerialise":
                (value,) = arguments
            else:
                value = self.tape.record(name, *arguments, **attributes)
            self.values[index] = value
        return self.values[index]
