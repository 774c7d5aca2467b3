"""Has every test module compiled once, before several processes read them in `make test`: each would do it by itself.

That takes nine seconds of CPU.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys


def main() -> None:
    if "DJANGO_KAFKA_TEST_RUN" not in os.environ:
        return  # one file may be asked for, by one process
    import pytest

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = pytest.main(["--collect-only", "-qq"])
    if code:
        print(said.getvalue())
    sys.exit(code)


if __name__ == "__main__":
    main()
