"""Where the time of an outer iteration goes: a stopwatch, and what it watches.

    seconds = seconds_of_parts(lambda: learner.step(theta, batch), our_places(), ...)

Functions are wrapped while a call runs, and afterwards all is as it was. The package
knows nothing of it.

Left out: functions that several threads call at the same time.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from functools import wraps
from time import perf_counter
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from benchmarks.common import Array, markdown_table, milliseconds
from tinymaml.rl import maml_trpo
from tinymaml.rl.policy import GaussianPolicy

LINE_SEARCH, REST = "line search", "everything else"
PARTS = (
    "sampling: policy",
    "sampling: physics",
    "sampling: measuring",
    "sampling: arrays",
    "advantages",
    "inner step",
    "KL of the inner step",
    "gradient",
    "Fisher products",
    LINE_SEARCH,
    REST,
)


class Place(NamedTuple):
    """A function that is watched: the part it belongs to, where it is, its name."""

    part: str
    owner: Any  # a class or a module
    name: str


class Stopwatch:
    """Seconds of each part, summed over calls.

    A wrapped function gets the time that it takes itself, without that of the wrapped
    functions it calls. Those of a part in `whole` keep the time of all they call.
    """

    def __init__(
        self, whole: Set[str] = frozenset(), clock: Callable[[], float] = perf_counter
    ) -> None:
        self.whole, self.clock = whole, clock
        self.seconds: defaultdict[str, float] = defaultdict(float)
        # The parts that run now, each with the seconds of the parts it has called.
        self._running: list[tuple[str, list[float]]] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time is added to a part."""

        @wraps(function)
        def wrapper(*arguments: Any, **options: Any) -> Any:
            if self._running and self._running[-1][0] in self.whole:
                return function(*arguments, **options)
            called: list[float] = []
            self._running.append((part, called))
            start = self.clock()
            try:
                return function(*arguments, **options)
            finally:
                seconds = self.clock() - start
                self._running.pop()
                self.seconds[part] += seconds - sum(called)
                if self._running:
                    self._running[-1][1].append(seconds)

        return wrapper

    @contextmanager
    def watching(self, places: Iterable[Place]) -> Iterator[None]:
        """Wrap the functions at these places for a while."""
        with ExitStack() as stack:
            for part, owner, name in places:
                timed = self.timed(part, getattr(owner, name))
                stack.enter_context(patch.object(owner, name, timed))
            yield


def our_places() -> list[Place]:
    """What is watched in tinymaml."""
    objective = maml_trpo.Objective
    return [
        Place("sampling: policy", GaussianPolicy, "act"),
        Place("sampling: arrays", maml_trpo, "roll_out"),
        Place("advantages", maml_trpo, "advantages"),
        Place("advantages", maml_trpo, "chunk_steps"),
        Place("inner step", maml_trpo.MAMLTRPO, "inner_step"),
        Place("KL of the inner step", maml_trpo.MAMLTRPO, "inner_kl"),
        Place("gradient", objective, "__init__"),
        Place("Fisher products", objective, "fisher"),
        Place(LINE_SEARCH, objective, "surrogate_and_kl"),
    ]


def torch_places() -> list[Place]:
    """What is watched in PyTorch's implementation."""
    from benchmarks import navigation_peers as peers

    return [
        Place("sampling: policy", peers.TorchPolicy, "act"),
        Place("sampling: arrays", peers, "roll_out"),
        Place("advantages", peers, "tensors_of"),
        Place("inner step", peers, "inner_step"),
        Place("gradient", peers.Objective, "__init__"),
        Place("Fisher products", peers.Objective, "fisher"),
        Place(LINE_SEARCH, peers.Objective, "evaluate"),
    ]


def environment_places(environment: Any) -> list[Place]:
    """What is watched in an environment. Locomotion measures by a second model."""
    kind = type(environment)
    places = [
        Place("sampling: physics", kind, "start"),
        Place("sampling: physics", kind, "step"),
        Place("sampling: measuring", kind, "observe"),
        Place("sampling: measuring", kind, "_measure"),
    ]
    return [place for place in places if hasattr(*place[1:])]


def seconds_of_parts(call: Callable[[], Any], places: Sequence[Place]) -> Array:
    """Seconds of each of `PARTS` in one call, after one that is not watched."""
    call()
    stopwatch = Stopwatch(whole={LINE_SEARCH})
    with stopwatch.watching(places):
        stopwatch.timed(REST, call)()
    return np.array([stopwatch.seconds[part] for part in PARTS])


def parts_table(columns: dict[str, Array]) -> str:
    """The parts' milliseconds and shares, for each implementation, in Markdown."""
    header, rows = ["part"], [[part] for part in (*PARTS, "sum")]
    for name, seconds in columns.items():
        header += [f"{name}: ms", "share"]
        for row, part in zip(rows, [*seconds, seconds.sum()], strict=True):
            row += (
                [milliseconds(part), f"{part / seconds.sum():.0%}"]
                if part
                else ["", ""]
            )
    return markdown_table(header, [row for row in rows if any(row[1:])])
