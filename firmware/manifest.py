"""What is frozen into a release: `make -C ports/esp32 FROZEN_MANIFEST=.../firmware/manifest.py`.

A stock image runs the same files from its file system. `main.py` and `boot.py` lie at the root, where
MicroPython looks for them.
"""

include("$(PORT_DIR)/boards/manifest.py")  # noqa: F821 - the build tool gives these functions
package("gateway", base_path="..", opt=0)  # noqa: F821
package("firmware", base_path="..", opt=0)  # noqa: F821
module("main.py", base_path=".")  # noqa: F821
module("boot.py", base_path=".")  # noqa: F821
