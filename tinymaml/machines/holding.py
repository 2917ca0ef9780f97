"""Programs that hold some inputs, for machines that ask for all of them each time.

With this file such a machine says `hold = hold_beside`.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from tinymaml.machines import Play
from tinymaml.machines.checks import check_held, check_some
from tinymaml.tape import Tape

Array = np.ndarray[Any, Any]


class _Program(Protocol):
    tape: Tape
    dtype: np.dtype[Any]

    def __call__(self, inputs: Mapping[str, Array], /) -> dict[str, Array]: ...


def hold_beside(program: _Program, held: Mapping[str, Array]) -> Play:
    """The same for the rest of the inputs, these being given now."""
    asked, tasks = check_held(program.tape, program.dtype, held)

    def play(inputs: Mapping[str, Array]) -> dict[str, Array]:
        check_some(asked, program.dtype, inputs, tasks)
        return program({**held, **inputs})

    return play
