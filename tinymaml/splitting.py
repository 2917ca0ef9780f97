"""A tape in two parts: what is played once, and what is played for every v.

A product H v is asked for many times at the same parameters and data, by conjugate
gradients for one. Most of its tape does not depend on v: the loss and its gradient.
`split` takes a tape apart into one that computes all of that, and one that goes on from
there.

    first, second = split(tape, "v")
    kept = play first(inputs)                # once
    product = play second(inputs, kept, v)   # for each v

Left out: weighing what a kept value costs in memory. Views and broadcasts are made
again, all else is kept.
"""

from tinymaml.tape import Tape, Value

MADE_AGAIN = ("full", "reshape", "slice", "broadcast")  # cost nothing, or little


def split(tape: Tape, changing: str) -> tuple[Tape, Tape]:
    """Two tapes that do what `tape` does: without, and with, the input `changing`.

    What the second needs of the first are outputs of the first, one array per task, and
    inputs of the second, by the same name. Both have of the tape's inputs those that
    they read. `again` is forgotten: it is there for recording, which is over.

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
    changes = {tape.inputs[changing].entry}
    for index in tape.live():
        name = tape.entries[index].primitive.name
        arguments = tape.entries[index].arguments
        if index in changes or any(i in changes for i in arguments):
            changes.add(index)
            for i in arguments:
                if i not in changes:
                    _keep(i, first, second)
            second.record(index)
        elif name != "input":  # which is recorded where it is read
            first.record(index)
    for name, output in tape.outputs.items():
        if output.entry not in changes:
            _keep(output.entry, first, second)
        second.tape.output(name, second.record(output.entry), output.reduction)
    return first.tape, second.tape


def _keep(index: int, first: "_Copy", second: "_Copy") -> None:
    """Let the second tape have what the first computes."""
    entry = first.source.entries[index]
    if index in second.values or entry.primitive.name == "input":
        return
    if entry.primitive.name in (*MADE_AGAIN, "again"):
        for i in entry.arguments:
            _keep(i, first, second)
        return
    name = f"kept{index}"
    value = first.record(index)
    known = {output.entry: name for name, output in first.tape.outputs.items()}
    if value.index in known:  # two entries that are one without `again`
        name = known[value.index]
        second.values[index] = second.tape.value(second.tape.inputs[name].entry)
        return
    first.tape.output(name, value)
    second.values[index] = second.tape.input(name, entry.shape, per_task=True)


class _Copy:
    """A part of a tape, recorded anew: entries by their number on the old one."""

    def __init__(self, source: Tape) -> None:
        self.source, self.tape = source, Tape()
        self.values: dict[int, Value] = {}
        self.names = {i.entry: (name, i) for name, i in source.inputs.items()}

    def record(self, index: int) -> Value:
        """The value of an entry, with all that it needs."""
        if index not in self.values:
            primitive, arguments, attributes, shape = self.source.entries[index]
            if index in self.names:
                name, place = self.names[index]
                value = self.tape.input(name, shape, place.per_task)
            elif primitive.name == "again":
                value = self.record(arguments[0])
            else:
                values = [self.record(i) for i in arguments]
                value = self.tape.record(primitive.name, *values, **dict(attributes))
            self.values[index] = value
        return self.values[index]
