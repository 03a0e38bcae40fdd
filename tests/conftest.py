"""What all tests share: the plugin that runs tests/kernel inside a guest."""

from __future__ import annotations

pytest_plugins = ["guest"]
