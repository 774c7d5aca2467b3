"""Run servers in the foreground: `python -m tests.servers kafka postgresql redis`, until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import ExitStack

from . import Kafka, PostgreSQL, Redis, Server, Unavailable

KINDS: dict[str, type[Server]] = {"kafka": Kafka, "postgresql": PostgreSQL, "redis": Redis}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.servers", description=__doc__)
    parser.add_argument("servers", nargs="+", choices=[*KINDS, "kafka-3"], help="kafka-3 is a cluster of three nodes")
    chosen = parser.parse_args().servers
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as running:
        try:
            for name in chosen:
                server = Kafka(nodes=3) if name == "kafka-3" else KINDS[name]()
                running.enter_context(server)
                print(f"{name}: {getattr(server, 'dsn', server.address)}", flush=True)
            print("Ctrl-C ends them.", flush=True)
            signal.pause()
        except Unavailable as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
