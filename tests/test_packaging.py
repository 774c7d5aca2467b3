"""What people install is whole, and works where nothing else is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import django_kafka

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "django_kafka")

SETTINGS = """
SECRET_KEY = "a project of its own"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "project.sqlite3"}}
INSTALLED_APPS = [
    "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions",
    "django.contrib.messages", "django.contrib.staticfiles", "django_kafka",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]},
}]
KAFKA = {"brokers": ["localhost:9092"], "producers": {"default": {}}}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources: a build leaves traces that would end up in the next one."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    target = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", target, ".", cwd=copy)
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_carries_every_file_of_the_package(wheel: Path) -> None:
    carried = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "django_kafka").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert not sources - carried
    assert not {name for name in carried if not name.startswith(("django_kafka/", "django_lynx_kafka-"))}


@pytest.mark.parametrize("part", ["migrations/0001_initial.py", "templates/", "static/", "locale/", "py.typed"])
def test_the_wheel_carries(wheel: Path, part: str) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert [name for name in names if name.startswith(f"django_kafka/{part}")]


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    metadata = metadata_of(wheel)

    assert metadata["Name"] == "django-lynx-kafka"
    assert metadata["Version"] == django_kafka.__version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Requires-Python"] == ">=3.11"
    extras = {"celery", "encryption", "pydantic", "schema-registry", "otel", "rich", "all", "test"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras


def test_only_five_packages_are_required(wheel: Path) -> None:
    required = [line for line in metadata_of(wheel).get_all("Requires-Dist", []) if "extra ==" not in line]

    names = {line.split(">")[0].split(";")[0].strip().lower() for line in required}
    assert names == {"django", "confluent-kafka", "msgspec", "django-prometheus", "django-health-check"}


def test_a_project_that_installs_the_wheel_checks_and_migrates(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "empty", cwd=tmp_path)
    python = tmp_path / "empty" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel, cwd=tmp_path)
    (tmp_path / "project_settings.py").write_text(SETTINGS)

    where = run(python, "-c", "import django_kafka; print(django_kafka.__file__)", cwd=tmp_path)
    checked = run(python, "-m", "django", "check", "--fail-level", "WARNING", cwd=tmp_path)
    run(python, "-m", "django", "migrate", cwd=tmp_path)
    migrations = run(python, "-m", "django", "showmigrations", "lynx_kafka", cwd=tmp_path)
    missing = run(python, "-m", "django", "makemigrations", "--check", "--dry-run", cwd=tmp_path)

    assert Path(where.strip()).is_relative_to(tmp_path)
    assert "no issues" in checked
    assert "[X] 0001_initial" in migrations
    assert "No changes detected" in missing


def metadata_of(wheel: Path) -> Message:
    """Read the wheel's METADATA."""
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(archive.read(name))


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command in an environment without this checkout and return what it printed; fail with its output."""
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DJANGO", "VIRTUAL_ENV"))
    }
    env["DJANGO_SETTINGS_MODULE"] = "project_settings"
    env["PYTHONPATH"] = str(cwd)
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} ended with code {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
