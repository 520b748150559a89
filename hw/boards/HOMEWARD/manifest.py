"""What is frozen into a release: Homeward, what it needs of MicroPython's library, and a start of its own.

MicroPython's own `_boot.py` is left out: it formats a blank file system and stops for ever at a damaged one.
"""

module("_boot.py", base_path=".")  # noqa: F821 - the build tool gives these functions
module("main.py", base_path=".")  # noqa: F821
include("../../../firmware/manifest.py")  # noqa: F821
include("$(MPY_DIR)/extmod/asyncio")  # noqa: F821
require("neopixel")  # noqa: F821
require("ntptime")  # noqa: F821
require("ssl")  # noqa: F821
require("umqtt.simple")  # noqa: F821
