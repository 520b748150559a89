"""The main job on one machine: virtual Sensors and Kits, a real broker, service and Hub. Begin at hw/demo/main.py."""
