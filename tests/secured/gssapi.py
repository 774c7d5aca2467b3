"""A client with GSSAPI for this interpreter: `python -m tests.secured.gssapi`, in a tox environment of its own.

The wheel of confluent-kafka has none. The library's source ships inside a package of npm; it is built once for a user
and kept beside Kafka's jars, then confluent-kafka is built against it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.servers.kafka import cache
from tests.servers.processes import found

SOURCE = "@confluentinc/kafka-javascript@1.10.1"
LIBRARY = "2.15.1"
CLIENT = "confluent-kafka==2.15.0"
_BUILD = "./configure --prefix={prefix} --enable-gssapi && make -j2 libs && make install-subdirs"


def library() -> Path:
    """Return where librdkafka with GSSAPI is installed; the first time it is built, which takes a minute."""
    ready = cache() / f"librdkafka-{LIBRARY}-gssapi"
    if ready.is_dir():
        return ready
    ready.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        _run([found("npm", "npm"), "pack", "--silent", SOURCE], work)
        (package,) = work.glob("*.tgz")
        _run(["tar", "xzf", package, "package/deps/librdkafka"], work)
        source = work / "package" / "deps" / "librdkafka"
        # Its own place is written into the library, so it is built for where it will be.
        _run(["sh", "-c", _BUILD.format(prefix=ready)], source)
    return ready


def install() -> None:
    """Build confluent-kafka against it for this interpreter, unless that was done."""
    place = library()
    mark = Path(sys.prefix) / "confluent-kafka-with-gssapi"
    if mark.exists() and mark.read_text() == f"{place}\n{CLIENT}":
        return
    env = {
        **os.environ,
        "C_INCLUDE_PATH": str(place / "include"),
        "LIBRARY_PATH": str(place / "lib"),
        "LDFLAGS": f"-Wl,-rpath,{place / 'lib'}",
    }
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-cache-dir", "--force-reinstall", "--no-deps"]
    _run([*pip, "--no-binary", "confluent-kafka", CLIENT], Path.cwd(), env)
    mark.write_text(f"{place}\n{CLIENT}")


def _run(command: list[str | Path], place: Path, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        [str(part) for part in command], cwd=place, env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        shutil.rmtree(cache() / f"librdkafka-{LIBRARY}-gssapi", ignore_errors=True)
        sys.exit(f"{' '.join(map(str, command))} ended with code {done.returncode}:\n{done.stdout[-4000:]}")


if __name__ == "__main__":
    install()
