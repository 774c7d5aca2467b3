"""How the package is built. The version is read, not imported: nothing of ours runs at build time."""

from __future__ import annotations

import ast
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
README = ROOT / "README.md"


def version() -> str:
    """The one place that says it is django_kafka/__init__.py."""
    for node in ast.parse((ROOT / "django_kafka" / "__init__.py").read_text("utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__version__")], value=ast.Constant(value=str(found))):
                return found
    raise SystemExit("django_kafka/__init__.py does not say __version__.")


EXTRAS = {
    "celery": ["celery>=5.4"],
    "encryption": ["cryptography>=44"],
    "schema-registry": ["confluent-kafka[avro,json,protobuf,schemaregistry]"],
    "pydantic": ["pydantic>=2.7"],
    "otel": ["opentelemetry-api>=1.20"],
    "rich": ["rich>=13"],
}

setup(
    name="django-lynx-kafka",
    version=version(),
    description="Apache Kafka for Django: produce from services and signals, consume in workers, replay what failed",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="django-lynx-kafka contributors",
    license_expression="BSD-3-Clause",
    license_files=["LICENSE"],
    packages=find_packages(include=["django_kafka", "django_kafka.*"]),
    package_data={"django_kafka": ["py.typed", "templates/**/*", "static/**/*", "locale/**/*"]},
    zip_safe=False,
    python_requires=">=3.11",
    install_requires=[
        "Django>=5.2",
        "confluent-kafka>=2.13",
        "msgspec>=0.19",
        "django-prometheus>=2.3",
        "django-health-check>=4",
    ],
    extras_require={
        **EXTRAS,
        "all": sorted(requirement for requirements in EXTRAS.values() for requirement in requirements),
        "test": [
            *EXTRAS["celery"],
            *EXTRAS["encryption"],
            *EXTRAS["pydantic"],
            *EXTRAS["schema-registry"],
            "django-tasks-db>=0.13",
            "gunicorn>=27",
            "opentelemetry-sdk>=1.20",
            "playwright>=1.58",
            "psycopg[binary,pool]>=3.2",
            "pytest>=8.3",
            "pytest-django>=4.11",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.8",
            "PyYAML>=6",
            "redis>=5",
            "rich>=13",
            "tox>=4.21",
            "tox-uv>=1.25",
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Web Environment",
        "Framework :: Django",
        "Framework :: Django :: 5.2",
        "Framework :: Django :: 6.0",
        "Framework :: Django :: 6.1",
        "Intended Audience :: Developers",
        "Operating System :: OS Independent",
        "Programming Language :: Python",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
)
