"""The technicians' bench: what is done with Kits and Sensors before and after they are with a patient."""


class StationError(Exception):
    """What keeps a command from doing its work: one clear line for the technician."""
