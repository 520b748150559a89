"""Virtual Sensors and radio, the ground truth of the demo: nothing of gateway/ or sync_service/ is here."""
