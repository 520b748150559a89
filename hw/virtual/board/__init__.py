"""
What stands for the ESP32: MicroPython modules with the names and the semantics of its documentation.

They are run by the unix MicroPython and never imported by CPython; `hw.virtual.board_host` starts them. Each
file has the name of the module it stands for; `chip.py` is what they share, `start.py` is the boot.
"""
