"""What tests/gateway uses of unittest, for MicroPython, which has none: a file named after it.

Nothing can be skipped: a test runs on every interpreter, or it fails. Nothing else of unittest is here, so
that a test that needs more breaks on MicroPython at once.
"""

import gc
import sys


class TestCase:
    def setUp(self):
        pass

    def tearDown(self):
        pass

    def fail(self, msg=None):
        raise AssertionError(msg)

    def assertTrue(self, value, msg=None):
        _check(value, msg, "%r is not true", value)

    def assertFalse(self, value, msg=None):
        _check(not value, msg, "%r is not false", value)

    def assertEqual(self, first, second, msg=None):
        _check(first == second, msg, "%r != %r", first, second)

    def assertNotEqual(self, first, second, msg=None):
        _check(first != second, msg, "%r == %r", first, second)

    def assertIs(self, first, second, msg=None):
        _check(first is second, msg, "%r is not %r", first, second)

    def assertIsNot(self, first, second, msg=None):
        _check(first is not second, msg, "%r is %r", first, second)

    def assertIsNone(self, value, msg=None):
        _check(value is None, msg, "%r is not None", value)

    def assertIsNotNone(self, value, msg=None):
        _check(value is not None, msg, "%r is None", value)

    def assertIn(self, member, container, msg=None):
        _check(member in container, msg, "%r not in %r", member, container)

    def assertNotIn(self, member, container, msg=None):
        _check(member not in container, msg, "%r in %r", member, container)

    def assertIsInstance(self, value, kind, msg=None):
        _check(isinstance(value, kind), msg, "%r is no %r", value, kind)

    def assertLess(self, first, second, msg=None):
        _check(first < second, msg, "%r >= %r", first, second)

    def assertLessEqual(self, first, second, msg=None):
        _check(first <= second, msg, "%r > %r", first, second)

    def assertGreater(self, first, second, msg=None):
        _check(first > second, msg, "%r <= %r", first, second)

    def assertGreaterEqual(self, first, second, msg=None):
        _check(first >= second, msg, "%r < %r", first, second)

    def assertRaises(self, kind, function=None, *args, **kwargs):
        raised = _Raised(kind)
        if function is None:
            return raised
        with raised:
            function(*args, **kwargs)
        return None


class _Raised:
    """The context of assertRaises; `exception` is what was raised."""

    def __init__(self, kind):
        self.kind = kind
        self.exception = None

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        if kind is None:
            raise AssertionError("%r not raised" % (self.kind,))
        self.exception = value
        return issubclass(kind, self.kind)


def _check(holds, msg, words, *values):
    if not holds:
        raise AssertionError(msg or words % values)


def run_module(module):
    """Run every test of a module; returns (how many ran, how many of them failed)."""
    ran = failed = 0
    for case in [getattr(module, name) for name in dir(module)]:
        if isinstance(case, type) and issubclass(case, TestCase):
            for name in dir(case):
                if name.startswith("test"):
                    ran += 1
                    failed += not _passes(case, name)
    return ran, failed


def _passes(case, name):
    gc.collect()
    try:
        test = case()
        test.setUp()
        try:
            getattr(test, name)()
        finally:
            test.tearDown()
    except Exception as problem:
        print("FAILED %s.%s" % (case.__name__, name))
        sys.print_exception(problem)
        return False
    return True
