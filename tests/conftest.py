"""What all tests share: the plugin that runs tests/kernel inside a guest."""

from __future__ import annotations

from hypothesis import settings

pytest_plugins = ["tests.guest"]

# No time is asserted in a test, and a clone may belong to another user.
settings.register_profile("lbdr", database=None, deadline=None)
settings.load_profile("lbdr")
