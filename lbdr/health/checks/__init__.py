"""The checks, a file per kind: asyncio, cancellable, everything closed at the end."""
