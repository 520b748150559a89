"""homeward-gateway: run a Gateway on this computer, for bench and demo (P1 cannot hold here)."""

import argparse
import asyncio
import logging
import signal
import sys
from contextlib import suppress
from pathlib import Path

from gateway.errors import HomewardError
from gateway.linux.config import Config, load
from gateway.linux.run import LinuxGateway, wipe


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code. A wrong config or a refusal is one sentence on stderr."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        config = load(options.config)
        if options.command == "wipe":
            wipe(config, force_unsent=options.force_unsent)
        else:
            asyncio.run(_run(config, options.pair_window))
    except (HomewardError, OSError) as error:
        print(f"homeward-gateway: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="homeward-gateway", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the Gateway's TOML file")
    parser.add_argument(
        "--pair-window",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="let Sensors that are not bonded yet bond, for so long from the start",
    )
    commands = parser.add_subparsers(dest="command", metavar="wipe")
    clear = commands.add_parser("wipe", help="forget every Record and every Sensor; a new Journal begins")
    clear.add_argument(
        "--force-unsent", action="store_true", help="also when Records have not been sent: they are lost"
    )
    return parser


async def _run(config: Config, pair_window_s: float) -> None:
    """Until SIGINT or SIGTERM."""
    gateway = LinuxGateway(config)
    if pair_window_s > 0:
        gateway.open_pairing(pair_window_s)
    running = asyncio.ensure_future(gateway.run())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        with suppress(asyncio.CancelledError):
            await running
    finally:
        gateway.close()


if __name__ == "__main__":
    sys.exit(main())
