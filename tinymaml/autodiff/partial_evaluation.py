"""A tape in two parts: what is run once, and what is run for every v.

A product H v is asked for many times at the same parameters and data, by conjugate
gradients for one. Most of its tape does not depend on v: the loss and its gradient.
`split` takes a tape apart into one that computes all of that, and one that goes on from
there.

    first, second = split(tape, "v")
    kept = run first(inputs)                # once
    product = run second(inputs, kept, v)   # for each v

Left out: weighing what a kept value costs in memory. Views and broadcasts are made
again, all else is kept.
"""

from tinymaml.autodiff.tape import Tape, Value

MADE_AGAIN = ("full", "reshape", "slice", "broadcast")  # cost nothing, or little


def split(tape: Tape, changing: str) -> tuple[Tape, Tape]:
    """Two tapes that do what `tape` does: without, and with, the input `changing`.

    What the second needs of the first are outputs of the first, one array per task, and
    inputs of the second, by the same name. Both have of the tape's inputs those that
    they read. `rematerialise` is forgotten: it is there for recording, which is over.

    Raises ValueError when the tape has no input of that name.

    >>> tape = Tape()
    >>> x, v = tape.input("x", (3,)), tape.input("v", (3,))
    >>> tape.output("product", x * x * x * v)
    >>> first, second = split(tape, "v")
    >>> [*first.inputs], [*second.inputs]
    (['x'], ['v', 'kept3'])
    """
    if changing not in tape.inputs:
        raise ValueError(
            f"changing: expected one of {[*tape.inputs]}, got {changing!r}"
        )
    first, second = _Copy(tape), _Copy(tape)
    changes = {tape.inputs[changing].node}
    for index in tape.live():
        name = tape.nodes[index].primitive.name
        arguments = tape.nodes[index].arguments
        if index in changes or any(i in changes for i in arguments):
            changes.add(index)
            for i in arguments:
                if i not in changes:
                    _keep(i, first, second)
            second.record(index)
        elif name != "input":  # which is recorded where it is read
            first.record(index)
    for name, output in tape.outputs.items():
        if output.node not in changes:
            _keep(output.node, first, second)
        second.tape.output(name, second.record(output.node), output.reduction)
    return first.tape, second.tape


def _keep(index: int, first: "_Copy", second: "_Copy") -> None:
    """Let the second tape have what the first computes."""
    node = first.source.nodes[index]
    if index in second.values or node.primitive.name == "input":
        return
    if node.primitive.name in (*MADE_AGAIN, "rematerialise"):
        for i in node.arguments:
            _keep(i, first, second)
        return
    name = f"kept{index}"
    value = first.record(index)
    known = {output.node: name for name, output in first.tape.outputs.items()}
    if value.index in known:  # two nodes that are one without `rematerialise`
        name = known[value.index]
        second.values[index] = second.tape.value(second.tape.inputs[name].node)
        return
    first.tape.output(name, value)
    second.values[index] = second.tape.input(name, node.shape, per_task=True)


class _Copy:
    """A part of a tape, recorded anew: nodes by their number on the old one."""

    def __init__(self, source: Tape) -> None:
        self.source, self.tape = source, Tape()
        self.values: dict[int, Value] = {}
        self.names = {i.node: (name, i) for name, i in source.inputs.items()}

    def record(self, index: int) -> Value:
        """The value of an node, with all that it needs."""
        if index not in self.values:
            primitive, arguments, attributes, shape = self.source.nodes[index]
            if index in self.names:
                name, place = self.names[index]
                value = self.tape.input(name, shape, place.per_task)
            elif primitive.name == "rematerialise":
                value = self.record(arguments[0])
            else:
                values = [self.record(i) for i in arguments]
                value = self.tape.record(primitive.name, *values, **dict(attributes))
            self.values[index] = value
        return self.values[index]
