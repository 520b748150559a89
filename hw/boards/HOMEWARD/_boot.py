"""The first thing that runs on a release with frozen code: the file system, where it is whole.

A damaged or blank one stays as it is, for the bench to look at, and the Kit goes on without: its code is
frozen, its identity lies in NVS, its Records in the Journal.
"""

import gc

import vfs
from esp32 import Partition

found = Partition.find(Partition.TYPE_DATA, label="vfs")
try:
    if found:
        vfs.mount(vfs.VfsLfs2(found[0]), "/")
except OSError as problem:
    print("the file system is damaged and stays as it is:", problem)

gc.collect()
