"""The whole test run, started by `make test`: prepare the machine, then every stage of it, then one summary.

    python -m tests.run test      everything
    python -m tests.run lint      ruff and mypy only
    python -m tests.run prepare   the environment .venv and the Debian packages only

The whole run holds a short chaos run of a fixed seed; `make chaos` makes long ones of any seed.

Standard library only, because it runs before anything is installed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv"
BY_UV = ENVIRONMENT / "by-uv"
"""There when uv installed what is in it."""
OF_UV = {"UV_SYSTEM_CERTS": "1", "UV_PYTHON_DOWNLOADS": "never"}
"""What uv is told: to trust whom the machine trusts, as pip does, and to fetch no interpreters."""
REPORTS = ROOT / ".tox" / "reports"
DJANGO_BY_PYTHON = {"3.11": ("52",), "3.12": ("52", "60", "61"), "3.13": ("52", "60", "61")}
"""Every Python that is supported and the Django releases it can run, as in tox.ini."""
KERBEROS = (
    ("krb5kdc", "krb5-kdc", "/usr/sbin/krb5kdc"),
    ("kadmin.local", "krb5-admin-server", "/usr/sbin/kadmin.local"),
    ("kinit", "krb5-user", "/usr/bin/kinit"),
    ("npm", "npm", "/usr/bin/npm"),
    ("the headers of SASL", "libsasl2-dev", "/usr/include/sasl/sasl.h"),
    ("SASL's GSSAPI", "libsasl2-modules-gssapi-mit", "/usr/lib/*/sasl2/libgssapiv2.so*"),
    ("the headers of OpenSSL", "libssl-dev", "/usr/include/openssl/ssl.h"),
    ("the headers of zlib", "zlib1g-dev", "/usr/include/zlib.h"),
    ("the headers of zstd", "libzstd-dev", "/usr/include/zstd.h"),
    ("the headers of lz4", "liblz4-dev", "/usr/include/lz4.h"),
    ("the headers of curl", "libcurl4-openssl-dev", "/usr/include/*/curl/curl.h"),
)
"""What the tests of Kerberos need, the Debian package that has it, and where it puts it."""
POSTGRESQL = Path("/usr/lib/postgresql")
"""Where Debian keeps PostgreSQL's programs."""
PGBOUNCER = Path("/usr/sbin/pgbouncer")
"""Where Debian puts it, which is not on everybody's PATH."""
CHROMIUM = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
"""What a browser that the tests can drive is called."""
# Most of the time is spent waiting: for processes to start, sessions to end, brokers to come back.
# In the order of conftest.py, the longest first; pytest-xdist by itself begins with the files of the most tests.
SIX_AT_A_TIME = ["-n", "6", "--dist", "loadfile", "--no-loadscope-reorder"]
FAST = ["-n", "4", "--dist", "loadfile", "-m", "not real and not slow", "-q"]
LINT = ["lint", "types"]
"""Environments of tox that run no tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One part of the run."""

    name: str
    """What the summary calls it."""
    arguments: list[str]
    """What tox is told."""
    database: str = "sqlite"
    """The database of the tests."""
    brief: tuple[str, ...] = ()
    """Environments between the oldest and the newest, which run less: see tests/conftest.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chaos:
    """The chaos run that is part of every whole run."""

    seed: int
    """What its faults follow from."""
    minutes: float
    """How long they strike."""


CHAOS = Chaos(seed=4, minutes=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a part of the run ended."""

    stage: Stage
    """Which part."""
    code: int
    """The exit code."""
    seconds: float
    """How long it took."""


# --- what the machine has ---------------------------------------------------------------------------------------------


def interpreters(versions: Iterable[str] = DJANGO_BY_PYTHON) -> dict[str, str]:
    """Find an interpreter for each version: this one, one on the PATH, or one that pyenv keeps."""
    found = {}
    for version in versions:
        candidates = [sys.executable, shutil.which(f"python{version}"), *_kept_by_pyenv(version)]
        path = next((each for each in candidates if each and _answers(each) == version), None)
        if path:
            found[version] = path
    return found


def _kept_by_pyenv(version: str) -> list[str]:
    root = os.environ.get("PYENV_ROOT") or str(Path.home() / ".pyenv")
    return [str(path) for path in sorted(Path(root).glob(f"versions/{version}.*/bin/python{version}"), reverse=True)]


def _answers(path: str, question: str = "import sys; print('%d.%d' % sys.version_info[:2])") -> str | None:
    """The version that an interpreter says it is; None when it does not run, as pyenv's shims often do not."""
    try:
        answer = subprocess.run([path, "-c", question], capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def missing_packages(python: str = sys.executable) -> dict[str, str]:
    """Return what the tests need and this machine lacks: the program and the Debian package that carries it."""
    kept = list(POSTGRESQL.glob("*/bin/initdb"))
    needed: dict[str, tuple[str, Callable[[], object]]] = {
        "PostgreSQL's initdb": ("postgresql", lambda: kept or shutil.which("initdb")),
        "pgbouncer": ("pgbouncer", lambda: shutil.which("pgbouncer") or PGBOUNCER.exists()),
        "redis-server": ("redis-server", lambda: shutil.which("redis-server")),
        "java": ("default-jre-headless", lambda: shutil.which("java")),
        "mvn": ("maven", lambda: shutil.which("mvn")),
        "openssl": ("openssl", lambda: shutil.which("openssl")),
        "chromium": ("chromium", lambda: any(map(shutil.which, CHROMIUM))),
        **{what: (package, partial(_is_there, place)) for what, package, place in KERBEROS},
        f"{python} -m venv": ("python3-venv", lambda: _answers(python, "import ensurepip; print('yes')")),
    }
    return {program: package for program, (package, present) in needed.items() if not present()}


def _is_there(place: str) -> bool:
    return any(Path("/").glob(place.lstrip("/")))


def install_packages(python: str) -> None:
    """Install Debian packages where we may; name what is missing where we may not."""
    missing = missing_packages(python)
    if not missing:
        return
    packages = sorted(set(missing.values()))
    if os.geteuid() == 0 and shutil.which("apt-get"):
        say(f"installing {', '.join(packages)}")
        # RUNLEVEL: we need the programs, not the services that Debian would start.
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", "-q", *command], env=env, stdin=subprocess.DEVNULL, check=False)
        missing = missing_packages(python)
    for program, package in missing.items():
        say(f"MISSING: {program} (Debian package: {package}). What needs it is skipped, and fails under CI=true")


def make_environment(python: str) -> None:
    """Make .venv with the test extra, anew when setup.py or the interpreter changed."""
    ready = ENVIRONMENT / "ready"
    wanted = f"{python}\n{(ROOT / 'setup.py').read_text()}"
    if ready.exists() and ready.read_text() == wanted and _answers(str(ENVIRONMENT / "bin" / "python")):
        return
    say(f"making {ENVIRONMENT.name} with {python}")
    if subprocess.run([python, "-m", "venv", "--clear", str(ENVIRONMENT)], check=False).returncode:
        sys.exit(f"{python} cannot make a virtual environment (Debian package: python3-venv).")
    if not (_install_by_uv() or _install("-m", "pip", "install", "-e", ".[test]")):
        sys.exit("pip could not install the project with its test extra; its reason stands above.")
    ready.write_text(wanted)


def _install_by_uv() -> bool:
    """Install with uv, which takes a tenth of pip's time; where that cannot be, as with an index of pip's own, say so.

    tox has its environments made in the same way.
    """
    if _install("-m", "pip", "install", "uv") and _install("-m", "uv", "pip", "install", "-e", ".[test]"):
        BY_UV.touch()
        return True
    say("uv could not install the project, for the reason above; pip does it")
    return False


def _install(*command: str) -> bool:
    python = ENVIRONMENT / "bin" / "python"
    env = {**os.environ, **OF_UV, "VIRTUAL_ENV": str(ENVIRONMENT), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run([python, *command, "-q"], cwd=ROOT, env=env, check=False).returncode == 0


# --- the run ----------------------------------------------------------------------------------------------------------


def stages(found: Iterable[str]) -> list[Stage]:
    """Lay out the run: everything in the newest environment, chaos, then the fast part in some others.

    Kerberos, lint and types run beside the last. The others are chosen so that every Python that was found runs, and
    every Django; `tox` runs all there are. What works in the oldest of them and in the newest is tried briefly between.
    """
    *older, latest = found
    django = DJANGO_BY_PYTHON[latest][-1]
    newest, covered, others = environment(latest, django), {django}, []
    for version in reversed(older):
        new = [each for each in DJANGO_BY_PYTHON[version] if each not in covered] or DJANGO_BY_PYTHON[version]
        others.append(environment(version, new[-1]))
        covered.add(new[-1])
    others += [environment(latest, each) for each in DJANGO_BY_PYTHON[latest] if each not in covered]
    beside = ",".join(["gssapi", *(others or [newest]), *LINT])
    fast = ["run-parallel", "-p", "3", "--parallel-no-spinner", "-e", beside, "--", *FAST]
    return [
        Stage(
            name=f"everything, {newest}", arguments=["run", "-e", newest, "--", *SIX_AT_A_TIME], database="postgresql"
        ),
        chaos_stage(newest),
        Stage(
            name=f"fast part in {len(others) or 1} more environments, Kerberos, lint and types",
            arguments=fast,
            brief=tuple(sorted(others)[1:]),
        ),
    ]


def environment(version: str, django: str) -> str:
    """Return what tox calls a Python and a Django."""
    return f"py{version.replace('.', '')}-django{django}"


def lint_stages() -> list[Stage]:
    return [Stage(name="lint and types", arguments=["run", "-e", ",".join(LINT)])]


def chaos_stage(environment: str) -> Stage:
    """A short chaos run, alone on the machine, in an environment that an earlier stage has made."""
    command = ["python", "-m", "tests.chaos", "--seed", str(CHAOS.seed), "--minutes", str(CHAOS.minutes)]
    command.append("--optional")
    return Stage(name=f"chaos, seed {CHAOS.seed}", arguments=["exec", "-e", environment, "--", *command])


def carry_out(stage: Stage, found: dict[str, str]) -> Outcome:
    """Run one stage; it ends when we do, whatever ends us."""
    say(stage.name)
    kept = {str(Path(path).parent) for path in found.values()}
    env = {
        **os.environ,
        **OF_UV,
        "TOX_RUNNER": "uv-venv-runner" if BY_UV.exists() else "virtualenv",
        "DJANGO_KAFKA_TEST_RUN": "1",
        "DJANGO_KAFKA_TEST_DATABASE": stage.database,
        "DJANGO_KAFKA_TEST_BRIEF": ",".join(stage.brief),
        "TOX_DISCOVER": ",".join(found.values()),
        # Where uv looks for interpreters.
        "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), *kept]),
    }
    python = str(ENVIRONMENT / "bin" / "python")
    leash = [python, str(ROOT / "tests" / "servers" / "leash.py"), str(os.getpid()), "-", str(int(signal.SIGTERM))]
    began = time.monotonic()
    process = subprocess.Popen(
        [*leash, python, "-m", "tox", *stage.arguments],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        code = process.wait()
    except BaseException:
        _end(process)
        raise
    return Outcome(stage=stage, code=code, seconds=time.monotonic() - began)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let the tests stop their servers; what is left after half a minute is killed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def summary(outcomes: Sequence[Outcome], found: Sequence[str]) -> list[str]:
    """What happened, ending in one line of counts that people and machines read."""
    lines = [
        f"  {'ok    ' if outcome.code == 0 else 'FAILED'}  {outcome.stage.name} ({outcome.seconds:.0f} s)"
        for outcome in outcomes
    ]
    lacking = [version for version in DJANGO_BY_PYTHON if version not in found]
    if lacking:
        lines.append(f"  not run: Python {', '.join(lacking)} (no interpreter found)")
    passed, failed, skipped = counts(REPORTS)
    # Lint, or a pytest that did not come as far as a report, counts as one failure.
    failed = max(failed, sum(outcome.code != 0 for outcome in outcomes))
    lines.append(f"{passed} passed, {failed} failed, {skipped} skipped")
    return lines


def counts(reports: Path) -> tuple[int, int, int]:
    """Add up pytest's reports: passed, failed, skipped."""
    passed = failed = skipped = 0
    for report in reports.glob("*.xml"):
        for suite in ElementTree.parse(report).iter("testsuite"):
            tests, bad, out = (
                int(suite.get("tests", 0)),
                int(suite.get("failures", 0)) + int(suite.get("errors", 0)),
                int(suite.get("skipped", 0)),
            )
            passed, failed, skipped = passed + max(0, tests - bad - out), failed + bad, skipped + out
    return passed, failed, skipped


def say(sentence: str) -> None:
    print(f"\n=== {sentence}", flush=True)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> None:
    job = sys.argv[1] if len(sys.argv) > 1 else "test"
    signal.signal(signal.SIGTERM, leave)
    found = interpreters()
    if not found:
        sys.exit(f"No interpreter was found for any of Python {', '.join(DJANGO_BY_PYTHON)}.")
    for version in DJANGO_BY_PYTHON:
        print(f"Python {version}: {found.get(version, 'not found, not tested')}", flush=True)
    *_, newest = found.values()
    if job != "lint":
        install_packages(newest)
    make_environment(newest)
    if job == "prepare":
        return
    shutil.rmtree(REPORTS, ignore_errors=True)
    wanted = stages(found) if job == "test" else lint_stages()
    outcomes = [carry_out(stage, found) for stage in wanted]
    if job == "test":
        say("summary")
        print("\n".join(summary(outcomes, list(found))), flush=True)
    sys.exit(any(outcome.code for outcome in outcomes))


if __name__ == "__main__":
    main()
