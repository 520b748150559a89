"""The one shim between MicroPython and CPython: nothing else in gateway/ asks which of the two it runs on."""

try:
    from micropython import const
except ImportError:  # CPython

    def const(value: int) -> int:
        """Return the constant itself: only MicroPython's compiler folds it."""
        return value


__all__ = ("const",)
