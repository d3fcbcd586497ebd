"""Settings that hold within a `with` block: for the thread or asyncio task that runs it, and for no other.

What a forward or backward pass asks of its surroundings is such a setting: whether to record (`no_grad`, tensor.py),
whether to run kernels (`kernels`, dispatch.py), who observes (`observe`, function.py). A server that generates in some
threads and trains in another needs each of them once per thread; and since tasks of asyncio take turns in one thread, a
thread's own variable would not do. Python's contextvars separate both.

They do not separate a generator from its consumer. A block in a generator lasts while others run:

    def texts():
        with no_grad():
            yield next_text()         suspended here; the consumer of texts() may train meanwhile

so a block that was entered by a generator counts only while that generator is running, or something it has called.
Exceptions are generators that stand for a block themselves, those of `contextlib.contextmanager` and pytest's fixtures.
"""

import functools
import inspect
import sys
from contextvars import ContextVar
from types import FrameType, SimpleNamespace
from typing import Any

_ENDED = SimpleNamespace(f_back=None)  # in place of the frame of a generator
_SUSPENDS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR  # not coroutines: the tasks they run in are separate
_BLOCK_MAKERS = ("contextlib", "_pytest.fixtures")  # modules that suspend a generator for the time of a block


class Setting:
    """A value that the innermost block around the caller decides.

        recording = Setting("recording", True)
        with recording.set(False):
            recording.get()                   False

    Threads start without any block, tasks of asyncio with those around the call that made them.
    """

    def __init__(self, name: str, default: Any):
        self.default = default
        self._entered: ContextVar[tuple[_Entry, ...]] = ContextVar(name, default=())

    def get(self) -> Any:
        """The value of the innermost block, or the default."""
        if entries := self._entered.get():
            for entry in reversed(entries):
                if entry.generator is None or entry.counts():
                    return entry.value
        return self.default

    def values(self) -> tuple[Any, ...]:
        """The values of all blocks, the innermost last."""
        entries = self._entered.get()
        return tuple([entry.value for entry in entries if entry.counts()]) if entries else ()

    def set(self, value: Any) -> "Block":
        """A block in which `value` holds; or, as a decorator, a function in which it does."""
        return Block(self, value)


class Block:
    """What `Setting.set` returns: for `with`, where it is the setting's value, or as a decorator."""

    def __init__(self, setting: Setting, value: Any):
        self.setting, self.value = setting, value
        self._entry: _Entry | None = None

    def __enter__(self) -> Any:
        entered = self.setting._entered
        others = [entry for entry in entered.get() if entry.generator is not _ENDED]
        self._entry = _Entry(self, self.value, _generator(sys._getframe(1)))
        entered.set((*others, self._entry))
        return self.value

    def __exit__(self, *_: Any) -> None:
        entries = self.setting._entered.get()
        for i in reversed(range(len(entries))):  # the last one is not always ours: generators may end in any order
            if entries[i].block is self:
                self.setting._entered.set(entries[:i] + entries[i + 1 :])
                return
        if self._entry:  # entered in another thread or task; that happens to generators that nobody uses any more
            self._entry.generator = _ENDED

    def __call__(self, function: Any) -> Any:
        """`function` within such a block; a generator or coroutine function all the way through."""

        @functools.wraps(function)
        def run(*args, **kwargs):
            with Block(self.setting, self.value):
                return function(*args, **kwargs)

        @functools.wraps(function)
        def run_generator(*args, **kwargs):
            with Block(self.setting, self.value):
                return (yield from function(*args, **kwargs))

        @functools.wraps(function)
        async def run_coroutine(*args, **kwargs):
            with Block(self.setting, self.value):
                return await function(*args, **kwargs)

        if inspect.iscoroutinefunction(function):
            return run_coroutine
        return run_generator if inspect.isgeneratorfunction(function) else run


class _Entry:
    """A block that has been entered; `generator` is the frame of the generator that did it, else None."""

    __slots__ = ("block", "value", "generator")

    def __init__(self, block: Block, value: Any, generator: Any):
        self.block, self.value, self.generator = block, value, generator

    def counts(self) -> bool:
        """Is it around the code that runs now? The frame of a generator has a caller only while the generator runs."""
        return self.generator is None or self.generator.f_back is not None


def _generator(frame: FrameType) -> FrameType | None:
    """`frame`, if it is that of a generator whose consumer runs while the block waits; else None."""
    caller: FrameType | None = frame
    while caller is not None and caller.f_code.co_flags & _SUSPENDS:
        caller = caller.f_back
    if caller is frame or (caller is not None and caller.f_globals.get("__name__") in _BLOCK_MAKERS):
        return None
    return frame
