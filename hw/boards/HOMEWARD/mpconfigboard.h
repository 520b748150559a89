#define MICROPY_HW_BOARD_NAME "Homeward Kit"
#define MICROPY_HW_MCU_NAME "ESP32-S3"

// What a Kit says goes to the USB bridge. There is no prompt to type at: main.py never ends.
#define MICROPY_HW_ENABLE_UART_REPL (1)

// No debugger and no second console on the chip's own USB.
#define MICROPY_HW_ENABLE_USBDEV (0)
#define MICROPY_HW_ESP_USB_SERIAL_JTAG (0)
