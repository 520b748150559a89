"""Homeward's part of what is frozen into a release; hw/boards/HOMEWARD/manifest.py includes it.

A stock image runs the same files, compiled, from its file system (hw/station/application.py). `boot.py` lies
at the root, where MicroPython looks for it.
"""

package("gateway", base_path="..", opt=0)  # noqa: F821 - the build tool gives these functions
package("firmware", base_path="..", opt=0)  # noqa: F821
module("boot.py", base_path=".")  # noqa: F821
