"""Virtual Sensors and radio: the ground truth of tests and demo. Imports nothing of gateway/ or sync_service/."""
