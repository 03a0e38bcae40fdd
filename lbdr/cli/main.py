"""The command `lbdr`, with its subcommands loaded when they are called."""

from __future__ import annotations

import importlib
import sys

import click

from lbdr import __version__

_COMMANDS = {
    "apply": "changes",
    "check": "check",
    "check-now": "check_now",
    "daemon": "daemon",
    "doctor": "doctor",
    "drain": "serving",
    "events": "events",
    "explain": "explain",
    "failback": "failback",
    "fastpath": "fastpath",
    "halt": "serving",
    "online": "serving",
    "plan": "changes",
    "reload": "runtime",
    "role": "runtime",
    "schema": "check",
    "solve-arp": "solve_arp",
    "status": "status",
    "weight": "runtime",
    "withdraw": "changes",
}


class _Lazy(click.Group):
    """Imports a command's module when it is called: `check` needs no netlink, `plan` no tables."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        found = getattr(importlib.import_module(f"lbdr.cli.{module}"), cmd_name.replace("-", "_"))
        if not isinstance(found, click.Command):
            raise TypeError(f"lbdr.cli.{module} has no command {cmd_name}")
        return found


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 the answer is no, 2 usage, 3 configuration, 4 privilege, "
    "5 kernel, 6 address in use, 7 not all done, 8 state directory, 9 daemon.",
)
@click.version_option(__version__, prog_name="lbdr")
def lbdr() -> None:
    """A load-balancing director for Direct Routing.

    \b
      lbdr check lbdr.yaml         is the file right?
      lbdr plan lbdr.yaml          what would be done, as commands
      lbdr apply lbdr.yaml         do it once
      lbdr daemon lbdr.yaml        do it, and keep it so
      lbdr status                  what is served, by whom, how much
      lbdr explain --help          which real server a client gets, and why
      lbdr drain SERVER            no new connections; open ones go on
      lbdr withdraw                take all of it down again
      lbdr solve-arp --vip VIP     on each real server
    """


def main() -> int:
    """Run the command of this process's arguments; click exits with its exit code."""
    lbdr(prog_name="lbdr")
    return 0


if __name__ == "__main__":
    sys.exit(main())
