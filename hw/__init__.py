"""What stands for hardware: boards, the bench, and virtual Sensors."""
