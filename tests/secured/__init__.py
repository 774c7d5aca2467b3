"""A cluster that demands logins, certificates and permissions; all of it is made by the test run.

`SecuredKafka` has a listener for each way in, `Certificates` the keys of both sides; `Provider` gives tokens.
"""

from __future__ import annotations

from .certificates import Certificates
from .cluster import PASSWORDS, SecuredKafka
from .provider import Provider

__all__ = ["PASSWORDS", "Certificates", "Provider", "SecuredKafka"]
