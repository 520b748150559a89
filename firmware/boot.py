"""The first thing that runs, before main.py: what has to be set before any of our code."""

import gc

import micropython

if hasattr(micropython, "alloc_emergency_exception_buf"):  # other ports have one from the start
    micropython.alloc_emergency_exception_buf(128)  # the indication handler catches while the heap is locked
micropython.kbd_intr(-1)  # a Kit has no console: bytes on its UART are not Ctrl-C
gc.threshold(32 * 1024)  # collect early and often: TLS takes its memory from what the heap has not grown into
