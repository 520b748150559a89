# Starts the firmware, which never ends. If it does, what was wrong is said and the Kit begins again: a prompt
# on its serial port would be a Kit that is dead until somebody pulls its plug.
import sys
import time

import machine

_AGAIN_S = 5  # long enough to be read, and to spare the flash in a boot loop

try:
    import firmware.main  # noqa: F401
except BaseException as problem:
    sys.print_exception(problem)
time.sleep(_AGAIN_S)
machine.reset()
