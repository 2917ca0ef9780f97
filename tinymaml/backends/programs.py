"""Compiled programs, stored for the next call: a bounded, locked cache.

    self._programs = ProgramCache()
    program = self._programs.get(key, lambda: backend.compile(record(), dtype))

A program owns memory and addresses of compiled kernels. These mean nothing in another
process, and two owners of one workspace would overwrite each other's numbers. So a copy
or a pickle of whatever holds a cache gets an empty one, and compiles again when it is
first called.

A function that is written in place, as in `maml.predict(lambda ...)`, is another object
in every call. Its program could never be found again, so a key holds functions weakly,
and a program goes when a function of its key has gone.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from inspect import ismethod
from threading import RLock
from typing import Any
from weakref import ReferenceType, WeakMethod, ref

# A training needs two or three programs; a new function in every call needs a bound.
CAPACITY = 16


class ProgramCache:
    """The `capacity` programs that were used last, by the key they were compiled for.

    >>> programs = ProgramCache(capacity=2)
    >>> [programs.get((key,), lambda: key.upper()) for key in "abca"]
    ['A', 'B', 'C', 'A']
    >>> len(programs)
    2
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._programs: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        # The key and the program of the last call, in one object: an interrupted call
        # cannot leave the key of one program beside another.
        self._last: tuple[tuple[Any, ...] | None, Any] = (None, None)
        # Re-entrant: a loss that is being recorded may itself call a learner.
        self._lock = RLock()

    def get(self, key: tuple[Any, ...], compile_program: Callable[[], Any]) -> Any:
        """The program of this key, compiled by the caller if it is not here.

        An error while it is compiled leaves the cache as it was.
        """
        with self._lock:
            last_key, program = self._last
            if key != last_key:  # to compare keys is cheaper than to hash them
                if key not in self._programs:
                    for old in [key for key in self._programs if _has_gone(key)]:
                        del self._programs[old]
                    self._programs[key] = compile_program()
                    while len(self._programs) > self.capacity:
                        self._programs.popitem(last=False)
                self._programs.move_to_end(key)
                program = self._programs[key]
                self._last = key, program
            return program

    def __len__(self) -> int:
        return len(self._programs)

    def __reduce__(self) -> tuple[type["ProgramCache"], tuple[int]]:
        """How copies, deep copies and pickles are made: a new cache, empty."""
        return ProgramCache, (self.capacity,)


def weakly(function: Any) -> Hashable:
    """A weak reference for a key, or the object itself if there can be none."""
    try:
        return WeakMethod(function) if ismethod(function) else ref(function)
    except TypeError:
        return function


def _has_gone(key: tuple[Any, ...]) -> bool:
    return any(isinstance(part, ReferenceType) and part() is None for part in key)
