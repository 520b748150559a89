"""A boot.py that makes the link impatient: a test need not wait for minutes. main.py is the release's own.

The order of the bounds is as on a board: a ping, then silence; and an Ack that never comes.
"""

import firmware.mqtt
import gateway.uplink

firmware.mqtt._PING_EVERY_MS = 300
firmware.mqtt._SILENCE_MS = 1_500
gateway.uplink.STUCK_WAITS = 0.3
