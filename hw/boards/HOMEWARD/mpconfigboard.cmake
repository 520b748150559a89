# The recommended board with Homeward frozen into MicroPython, for those who have ESP-IDF:
#   make -C ports/esp32 BOARD=HOMEWARD BOARD_DIR=<this folder>
# Its firmware.bin goes into `homeward-station image --micropython firmware.bin --allow-unknown` as a stock one does.
set(IDF_TARGET esp32s3)

set(SDKCONFIG_DEFAULTS
    boards/sdkconfig.base
    boards/sdkconfig.ble
    boards/sdkconfig.240mhz
    boards/sdkconfig.spiram_sx
    boards/sdkconfig.spiram_oct
    ${MICROPY_BOARD_DIR}/sdkconfig.board
)

set(MICROPY_FROZEN_MANIFEST ${MICROPY_BOARD_DIR}/manifest.py)
