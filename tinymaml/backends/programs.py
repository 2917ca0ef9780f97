"""Compiled programs, stored for the next call: a bounded, locked cache.

    self._programs = ProgramCache()
    program = self._programs.get(key, lambda: backend.compile(record(), dtype))

A program owns memory and addresses of compiled kernels. These mean nothing in another
process, and two owners of one workspace would overwrite each other's numbers. So a copy
or a pickle of whatever holds a cache gets an empty one, and compiles again when it is
first called.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import RLock
from typing import Any

# A training needs two or three programs; a new function in every call needs a bound.
CAPACITY = 16


class ProgramCache:
    """The `capacity` programs that were used last, by the key they were compiled for.

    >>> programs = ProgramCache(capacity=2)
    >>> [programs.get(key, lambda: object() and key) for key in "abca"]
    ['a', 'b', 'c', 'a']
    >>> len(programs)
    2
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._programs: OrderedDict[Hashable, Any] = OrderedDict()
        # The key and the program of the last call, in one object: an interrupted call
        # cannot leave the key of one program beside another.
        self._last: tuple[Hashable, Any] = (None, None)
        # Re-entrant: a loss that is being recorded may itself call a learner.
        self._lock = RLock()

    def get(self, key: Hashable, compile_program: Callable[[], Any]) -> Any:
        """The program of this key, compiled by the caller if it is not here.

        An error while it is compiled leaves the cache as it was.
        """
        with self._lock:
            last_key, program = self._last
            if key != last_key:  # to compare keys is cheaper than to hash them
                if key not in self._programs:
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
