"""Apicurio Registry from Maven: a schema registry with the API of Confluent's. It keeps schemas in memory."""

from __future__ import annotations

import http.client
import shutil
import signal
import tarfile
import tempfile
from pathlib import Path

from .kafka import cache
from .processes import Broken, Program, Server, Unavailable, found, free_port, run, wait_ready

VERSION = "2.6.13.Final"
ARTIFACT = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
PATH = "/apis/ccompat/v7"


class Registry(Server):
    """One registry on loopback, without a login and without TLS; stopping it forgets its schemas."""

    name = "Registry"

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self.program: Program | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Where clients of Confluent's API ask."""
        return f"http://{self.address}{PATH}"

    def start(self) -> None:
        if self.program is not None and self.program.poll() is None:
            return
        java, jar = found("java", "default-jre-headless"), program()
        home = self.home()
        # It lives too briefly for what the JVM does to be fast later.
        jvm = ["-Xmx384m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        options = [*jvm, f"-Dquarkus.http.port={self.port}", "-Dquarkus.http.host=127.0.0.1", "-jar", jar]
        self.program = Program.start([java, *options], log=home / "server.log", cwd=home)
        wait_ready(self.program, self._answers, name=self.name, seconds=120)

    def stop(self) -> None:
        if self.program is not None:
            self.program.end(signal.SIGTERM)
            self.program = None

    def kill(self) -> None:
        if self.program is not None:
            self.program.end()
            self.program = None

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", f"{PATH}/subjects")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def program() -> Path:
    """Return the jar that runs it; Maven fetches it the first time."""
    ready = cache() / f"apicurio-{VERSION}"
    if not ready.is_dir():
        _fetch(ready)
    return ready / f"apicurio-registry-app-{VERSION}-runner.jar"


def _fetch(ready: Path) -> None:
    maven = found("mvn", "maven")
    ready.parent.mkdir(parents=True, exist_ok=True)
    fetched = Path(tempfile.mkdtemp(prefix="apicurio-", dir=ready.parent))
    try:
        command = [maven, "-B", "dependency:copy", f"-Dartifact={ARTIFACT}", f"-DoutputDirectory={fetched}"]
        try:
            run(command, log=fetched / "maven.log", name="Fetching Apicurio Registry with Maven", seconds=600)
        except Broken as error:
            raise Unavailable(str(error)) from error
        [packed] = fetched.glob("*.tar.gz")
        with tarfile.open(packed) as archive:
            archive.extractall(fetched / "unpacked", filter="data")
        try:
            (fetched / "unpacked").rename(ready)
        except OSError:
            # Another run was faster; what it has fetched is as good.
            if not ready.is_dir():
                raise
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
