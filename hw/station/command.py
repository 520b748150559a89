"""`homeward-station`: the bench's command line. Each sub-command is a module that adds itself and runs."""

import argparse
import os
import sys
from collections.abc import Sequence

from hw.station import (
    StationError,
    decode,
    doctor,
    flash,
    image,
    journal,
    journey,
    label,
    monitor,
    provision,
    selftest,
    sensors,
    wipe,
)

COMMANDS = (
    provision,
    image,
    flash,
    selftest,
    sensors,
    label,
    journey,
    wipe,
    monitor,
    doctor,
    journal,
    decode,
)
"""In the order of a Kit's life."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command. 0: done; 1: could not be done, said on stderr; 2: wrong usage; 130: Ctrl-C."""
    parser = argparse.ArgumentParser(prog="homeward-station", description="The technicians' bench.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except StationError as problem:
        print(f"homeward-station: {problem}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as missing:
        print(
            f"homeward-station: {missing.name} is not here: pip install 'homeward[station]'", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("homeward-station: stopped; the same command can be run again", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
