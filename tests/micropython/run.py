"""Run test modules on MicroPython: `micropython run.py ROOT MODULE...`, in the folder of the repository.

ROOT holds gateway/ and tests/gateway/, as source or compiled. The last line is JSON: who ran, how many,
failed.
"""

import json
import sys


def main(root, names):
    stubs = sys.path[0]
    sys.path[:] = [stubs, root, root + "/tests/gateway", ".frozen"]
    import unittest

    ran = failed = 0
    for name in names:
        counts = unittest.run_module(__import__(name))
        ran += counts[0]
        failed += counts[1]
    version = ".".join([str(part) for part in sys.implementation[1][:3]])
    bits = 64 if sys.maxsize >> 31 else 32
    print(
        json.dumps({"interpreter": "MicroPython %s %d-bit" % (version, bits), "ran": ran, "failed": failed})
    )


main(sys.argv[1], sys.argv[2:])
