"""What `make test` decides before it starts anything: see tests/run.py."""

from __future__ import annotations

import configparser
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import django
import pytest

from tests import conftest, run
from tests.servers.processes import wait_until

ROOT = Path(__file__).resolve().parents[1]


def test_everything_runs_in_the_newest_environment_and_the_fast_part_in_the_others() -> None:
    whole, _chaos, fast = run.stages(["3.11", "3.13"])

    assert whole.arguments == ["run", "-e", "py313-django61", "--", *run.SIX_AT_A_TIME]
    assert whole.database == "postgresql"
    assert "gssapi,py311-django52,py313-django60,lint,types" in fast.arguments
    assert fast.database == "sqlite"


def test_every_python_and_every_django_runs_at_least_once() -> None:
    *_, fast = run.stages(["3.11", "3.12", "3.13"])
    assert "gssapi,py312-django60,py311-django52,lint,types" in fast.arguments

    *_, fast = run.stages(["3.12"])
    assert "gssapi,py312-django52,py312-django60,lint,types" in fast.arguments


def test_only_what_lies_between_the_oldest_and_the_newest_runs_briefly() -> None:
    brief = {
        ("3.11", "3.12", "3.13"): ("py312-django60",),
        ("3.11", "3.13"): ("py313-django60",),
        ("3.12",): ("py312-django60",),
        ("3.11",): (),
    }
    for found, between in brief.items():
        whole, _, fast = run.stages(found)
        assert (whole.brief, fast.brief) == ((), between)


@pytest.mark.parametrize(
    ("environment", "file", "fixtures", "runs"),
    [
        ("py312-django60", "test_effect_once.py", ["workplace", "embedded"], False),
        ("py312-django60", "test_event_loop.py", ["workplace", "embedded"], True),
        ("py312-django60", "test_admin.py", ["client", "db"], True),
        ("py311-django52", "test_effect_once.py", ["workplace", "embedded"], True),
        ("", "test_effect_once.py", ["workplace", "embedded"], True),
    ],
)
def test_a_brief_run_leaves_out_workers_on_a_cluster_only(
    monkeypatch: pytest.MonkeyPatch, environment: str, file: str, fixtures: list[str], runs: bool
) -> None:
    monkeypatch.setenv("DJANGO_KAFKA_TEST_BRIEF", "py312-django60")
    monkeypatch.setenv("TOX_ENV_NAME", environment)
    item = SimpleNamespace(path=Path(file), fixturenames=fixtures)

    assert (not conftest.is_brief() or conftest.belongs_to_brief(item)) is runs  # type: ignore[arg-type]
    assert all((ROOT / "tests" / name).exists() for name in conftest.DIFFERENT)


def test_a_short_chaos_run_is_part_of_every_run_and_names_its_seed() -> None:
    _, chaos, _ = run.stages(["3.11", "3.13"])

    assert chaos.name == f"chaos, seed {run.CHAOS.seed}"
    assert chaos.arguments[:3] == ["exec", "-e", "py313-django61"]
    told = ["--seed", str(run.CHAOS.seed), "--minutes", str(run.CHAOS.minutes), "--optional"]
    assert chaos.arguments[-5:] == told


def test_one_environment_alone_runs_on_both_databases() -> None:
    whole, *_, fast = run.stages(["3.11"])

    assert (whole.arguments[2], whole.database) == ("py311-django52", "postgresql")
    assert ("gssapi,py311-django52,lint,types" in fast.arguments, fast.database) == (True, "sqlite")


def test_the_run_and_tox_agree_on_what_is_supported() -> None:
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    listed = tox["tox"]["env_list"].split()

    assert listed[:-3] == ["py311-django52", "py{312,313}-django{52,60,61}"]
    assert run.DJANGO_BY_PYTHON == {"3.11": ("52",), "3.12": ("52", "60", "61"), "3.13": ("52", "60", "61")}


def test_this_environment_runs_what_it_is_named_for() -> None:
    python, _, release = os.environ.get("TOX_ENV_NAME", "").partition("-django")

    if release:
        assert (python, release) == ("py{}{}".format(*sys.version_info), "{}{}".format(*django.VERSION))


def test_this_interpreter_is_found() -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"

    assert run.interpreters([version]) == {version: sys.executable}


def test_an_interpreter_that_only_pyenv_keeps_is_found_and_one_that_does_not_run_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, kept = tmp_path / "path" / "python3.77", tmp_path / "versions" / "3.77.2" / "bin" / "python3.77"
    for program, text in ((broken, "exit 127"), (kept, "echo 3.77")):
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))

    assert run.interpreters(["3.77", "3.78"]) == {"3.77": str(kept)}


def test_what_a_bare_machine_lacks_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(run, "POSTGRESQL", tmp_path)
    monkeypatch.setattr(run, "PGBOUNCER", tmp_path / "pgbouncer")
    monkeypatch.setattr(
        run, "KERBEROS", [(what, package, f"{tmp_path}{place}") for what, package, place in run.KERBEROS]
    )

    assert run.missing_packages() == {
        "PostgreSQL's initdb": "postgresql",
        "pgbouncer": "pgbouncer",
        "redis-server": "redis-server",
        "java": "default-jre-headless",
        "mvn": "maven",
        "openssl": "openssl",
        "chromium": "chromium",
        **{what: package for what, package, _place in run.KERBEROS},
    }


def test_a_machine_that_may_not_install_packages_is_told_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    run.install_packages(sys.executable)

    assert "MISSING: java (Debian package: default-jre-headless)" in capsys.readouterr().out


def test_the_summary_names_what_did_not_run_and_ends_in_the_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, numbers in (("a", 'tests="7" failures="1" errors="1" skipped="2"'), ("b", 'tests="3" failures="0"')):
        (tmp_path / f"{name}.xml").write_text(f"<testsuites><testsuite {numbers}/></testsuites>")
    monkeypatch.setattr(run, "REPORTS", tmp_path)
    whole, *_ = run.stages(["3.13"])
    (lint,) = run.lint_stages()
    outcomes = [run.Outcome(stage=whole, code=1, seconds=61.4), run.Outcome(stage=lint, code=0, seconds=2)]

    assert run.summary(outcomes, ["3.13"]) == [
        "  FAILED  everything, py313-django61 (61 s)",
        "  ok      lint and types (2 s)",
        "  not run: Python 3.11, 3.12 (no interpreter found)",
        "6 passed, 2 failed, 2 skipped",
    ]


def test_a_stage_that_failed_without_a_report_is_not_counted_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "REPORTS", tmp_path)
    (lint,) = run.lint_stages()

    *_, counted = run.summary([run.Outcome(stage=lint, code=1, seconds=2)], list(run.DJANGO_BY_PYTHON))

    assert counted == "0 passed, 1 failed, 0 skipped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_takes_its_tests_and_servers_along(tmp_path: Path, number: signal.Signals) -> None:
    suite = tmp_path / "test_forever.py"
    suite.write_text(
        textwrap.dedent(
            """
            import time
            from pathlib import Path
            from tests.servers.processes import Program

            def test_forever(tmp_path):
                server = Program.start(["sleep", "100"], log=tmp_path / "log")
                Path(__file__).with_name("pid").write_text(f"{server.pid}\\n")
                time.sleep(100)
            """
        )
    )
    # Stands for tox: it waits for its child and hands no signal on.
    parent = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    pytest_command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        str(ROOT / "pyproject.toml"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", parent, *pytest_command, "--rootdir", str(ROOT), "-p", "tests.conftest", str(suite)],
        cwd=ROOT,
        env={**os.environ, "DJANGO_KAFKA_TEST_RUN": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    written = tmp_path / "pid"
    try:
        wait_until(lambda: written.exists() and written.read_text().endswith("\n"), 60)
    finally:
        process.send_signal(number)
        process.wait(30)
    server = int(written.read_text())

    wait_until(lambda: not Path(f"/proc/{server}").exists(), message="A server outlived the run")
