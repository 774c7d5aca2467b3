"""A Kerberos realm of the tests' own, on loopback: MIT's KDC, all of it in a directory of its own."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from tests.servers.processes import Program, Server, Unavailable, free_port, listens, run, wait_ready

REALM = "TESTS.EXAMPLE"
BROKER = f"kafka/localhost@{REALM}"
_KEPT = "/usr/sbin"  # where Debian puts the programs, which is on root's PATH only

_CLIENTS = """
[libdefaults]
 default_realm = {realm}
 dns_lookup_realm = false
 dns_lookup_kdc = false
 dns_canonicalize_hostname = false
 rdns = false
 udp_preference_limit = 1
 default_ccache_name = FILE:{home}/tickets
[realms]
 {realm} = {{
  kdc = 127.0.0.1:{port}
 }}
[domain_realm]
 localhost = {realm}
"""
_SERVER = """
[kdcdefaults]
 kdc_listen = ""
 kdc_tcp_listen = 127.0.0.1:{port}
[realms]
 {realm} = {{
  database_name = {home}/principal
  key_stash_file = {home}/stash
  acl_file = {home}/acl
  max_life = 1h
 }}
[logging]
 kdc = FILE:{home}/kdc.log
"""


class Kdc(Server):
    """One realm. Its principals are the broker's, and those of whom a keytab is asked for."""

    name = "Kerberos"

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self.program: Program | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """What tells a process of the realm."""
        home = self.home()
        return {"KRB5_CONFIG": str(home / "krb5.conf"), "KRB5_KDC_PROFILE": str(home / "kdc.conf")}

    def start(self) -> None:
        if self.program is not None and self.program.poll() is None:
            return
        home = self.home()
        if not (home / "principal").exists():
            self._make_realm(home)
        environment = {**os.environ, **self.env}
        self.program = Program.start([_found("krb5kdc"), "-n"], log=home / "server.log", env=environment)
        wait_ready(self.program, lambda: listens(self.port), name=self.name)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end()

    def keytab(self, principal: str) -> Path:
        """Make a principal, unless there is one, and return a file with its key."""
        file = self.home() / f"{principal.replace('/', '-')}.keytab"
        if not file.exists():
            self._ask(f"addprinc -randkey {principal}")
            self._ask(f"ktadd -k {file} {principal}")
        return file

    def change_key(self, principal: str) -> None:
        """Make the keytabs of a principal worthless."""
        self._ask(f"cpw -randkey {principal}")

    def _make_realm(self, home: Path) -> None:
        for file, text in (("krb5.conf", _CLIENTS), ("kdc.conf", _SERVER)):
            (home / file).write_text(text.format(realm=REALM, home=home, port=self.port))
        self._run("kdb5_util", "create", "-s", "-P", "master", "-r", REALM)

    def _ask(self, query: str) -> None:
        self._run("kadmin.local", "-r", REALM, "-q", query)

    def _run(self, program: str, *arguments: str) -> None:
        words = [f"{name}={value}" for name, value in self.env.items()]
        command = ["/usr/bin/env", *words, _found(program), *arguments]
        run(command, log=self.home() / "admin.log", name=f"{program} {arguments[-1]}")

    def _end(self, *signals: signal.Signals) -> None:
        if self.program is not None:
            self.program.end(*signals)
            self.program = None


def _found(program: str) -> str:
    path = shutil.which(program) or f"{_KEPT}/{program}"
    if not Path(path).exists():
        raise Unavailable(f"{program} is not installed (Debian packages: krb5-kdc, krb5-admin-server).")
    return path
