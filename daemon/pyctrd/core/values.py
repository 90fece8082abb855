"""The standard library's dataclass, made ready when its first instance is.

`dataclasses.dataclass` compiles up to six methods for each class, one by one: a millisecond, and the daemon has about a
hundred of them, most of which it does not use before somebody calls. A daemon that comes back is waited for; so here
a class begins with its fields and slots alone, and its first instance has the standard library make the methods.

Type checkers see the standard library's decorator, and everything that it promises holds: `replace`, `fields`,
`match`, FrozenInstanceError.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

_METHODS: Final = (
    *("__repr__", "__eq__", "__hash__"),
    *("__setattr__", "__delattr__", "__getstate__", "__setstate__"),  # if it is frozen
    "__init__",  # the last: no other thread has an instance before all methods are there
)

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, slots: bool, frozen: bool = False, eq: bool = True) -> Callable[[type[Any]], type[Any]]:
        """Decorate a class with slots as the standard library would."""
        assert slots

        def decorate(cls: type[Any]) -> type[Any]:
            body = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
            cls.__doc__ = (
                cls.__doc__ or cls.__name__
            )  # else dataclasses writes one, which takes twice as long as all of this
            light = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True)(cls)

            def first(self: Any, *values: Any, **named: Any) -> None:
                # A twin that nobody sees. Two threads may make one each: they are the same.
                complete = dataclasses.dataclass(slots=True, frozen=frozen, eq=eq)
                twin = complete(type(cls)(cls.__name__, cls.__bases__, body))
                for name in _METHODS:
                    if name in vars(twin):
                        setattr(light, name, vars(twin)[name])
                light.__init__(self, *values, **named)

            light.__init__ = first
            return light

        return decorate
