"""The command `lbdr`, and `python -m lbdr`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command of this process's arguments.

    `solve-arp` runs on real servers, where pyroute2 is all there is: it is dispatched before
    anything else is imported.

    Returns:
        The exit code (lbdr/errors.py).
    """
    arguments = sys.argv[1:]
    if arguments[:1] == ["solve-arp"]:
        from lbdr.realserver import cli as solve_arp  # noqa: PLC0415  # the other side's libraries

        return solve_arp.main(arguments[1:])
    try:
        from lbdr.cli.main import main as director  # noqa: PLC0415  # may lack its libraries here
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in {"lbdr", "pyroute2"}:
            raise
        sys.stderr.write(
            f"error: the Python module {error.name} is missing, which a director needs\n"
            "  hint: pip install 'lbdr[director]' (a real server needs `lbdr solve-arp` alone, "
            "and nothing more than it has)\n"
        )
        return 1
    return int(director() or 0)


if __name__ == "__main__":
    sys.exit(main())
