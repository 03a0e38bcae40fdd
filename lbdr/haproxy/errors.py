"""What can go wrong with the companion HAProxy itself."""

from __future__ import annotations

from lbdr.errors import LbdrError


class ProxyError(LbdrError):
    """HAProxy does not run, does not answer, or did not do what it was asked."""

    exit_code = 10
