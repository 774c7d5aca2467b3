#!/bin/sh
# The demo: makes an environment beside the checkout and hands over to `python -m testproject.demo`, which says the rest.
#   FLIGHTS=20000  sends that many flights (all: the whole year)
#   SERVE=0        ends after the numbers instead of serving the admin
#   PORT=8000      serves the admin there
#   SCHEMA_REGISTRY_URL=http://…  a schema registry: flights are reported as Avro, JSON Schema and Protobuf as well
set -eu
cd "$(dirname "$0")/.."

python=
others=$(pyenv root 2>/dev/null | sed 's|$|/versions/3.1[1-9]*/bin/python3|')
# shellcheck disable=SC2086  # the pattern is there to be expanded
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python $others}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "The demo needs Python 3.11 or newer and found none (PYTHON=/path/to/python names one)." >&2
    exit 1
fi

environment=.demo/environment
# What a schema registry needs is installed when there is one.
ready=$environment/ready${SCHEMA_REGISTRY_URL:+-for-schemas}
extra=${SCHEMA_REGISTRY_URL:+[schema-registry]}
if [ ! -x "$environment/bin/python" ] || [ ! -e "$ready" ] || [ setup.py -nt "$ready" ] || [ pyproject.toml -nt "$ready" ]; then
    echo "Making an environment in $environment …"
    rm -rf "$environment"
    if ! "$python" -m venv "$environment"; then
        echo "$python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv." >&2
        exit 1
    fi
    if ! "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".$extra" "rich>=13"; then
        echo "pip could not install the project and what it needs; its reason stands above." >&2
        exit 1
    fi
    touch "$environment/ready" "$ready"
fi
exec "$environment/bin/python" -m testproject.demo
