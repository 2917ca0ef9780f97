"""Compiled programs, stored for the next call: a bounded, locked cache.

    self._programs = ProgramCache()
    program = self._programs.get(key, lambda: backend.compile(record(), dtype))

A program owns memory and addresses of compiled kernels. These mean nothing in another
process, and two owners of one workspace would overwrite each other's numbers. So a deep
copy or a pickle of whatever holds a cache gets an empty one, and compiles again when it
is first called.

A function that is written in place, as in `maml.predict(lambda ...)`, is another object
in every call. Its program could never be found again, so a key holds functions weakly,
and a program goes when a function of its key has gone.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from inspect import ismethod
from threading import RLock
from typing import Any
from weakref import WeakSet, ref

# A training needs two or three programs; a new function in every call needs a bound.
CAPACITY = 16

# A forked child has a copy of every lock, but not of the thread that would release it.
LOCKS: WeakSet[Any] = WeakSet()


def free_after_fork(lock: Any) -> Any:
    """The lock, which in every forked child is free."""
    LOCKS.add(lock)
    return lock


def _free_locks() -> None:
    for lock in LOCKS:
        lock._at_fork_reinit()  # what the locks of Python's own modules do


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_locks)


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
        self._lock = free_after_fork(RLock())

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


class _Same:
    """What a key holds of an object: equal only for the very same one.

    Objects that are equal, or have no hash, are told apart as well. It holds an object
    weakly, unless that has no place for weak references, as with `__slots__`.
    """

    def __init__(self, thing: Any) -> None:
        try:
            self.get: Callable[[], Any] = ref(thing)
        except TypeError:
            self.get = lambda: thing

    def __hash__(self) -> int:
        return id(type(self))

    def __eq__(self, other: object) -> bool:
        here = self.get()
        return isinstance(other, _Same) and here is not None and here is other.get()


def weakly(function: Any) -> tuple[_Same, ...]:
    """Weak references to a function, for a key: the cache does not keep it alive.

    A bound method is a new object at each access, so the key refers to its owner and to
    its function instead.
    """
    method = ismethod(function)
    parts = (function.__self__, function.__func__) if method else (function,)
    return tuple(map(_Same, parts))


def _has_gone(key: tuple[Any, ...]) -> bool:
    return any(isinstance(part, _Same) and part.get() is None for part in key)
