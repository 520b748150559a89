"""The main job on one machine: virtual Sensors, Kits, a real broker, service and Hub. Begin at main.py."""
