"""The one shim between MicroPython and CPython: nothing else in gateway/ asks which of the two it runs on."""

TYPE_CHECKING = False
if TYPE_CHECKING:

    def const(value: int) -> int: ...

else:
    try:
        from micropython import const
    except ImportError:  # CPython

        def const(value):
            """Return the constant itself: only MicroPython's compiler folds it."""
            return value


__all__ = ("const",)
