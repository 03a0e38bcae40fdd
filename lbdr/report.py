"""What a pass is about, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field

from lbdr.datapath.kernel import Outcome
from lbdr.errors import LbdrError, StateError, VerificationError
from lbdr.model import Key
from lbdr.operations import Operation, service_key
from lbdr.own_words import words
from lbdr.plan import Conflict


@dataclass(frozen=True, slots=True)
class Scope:
    """What one pass is about.

    Args:
        services: only these; None for all.
        host: VIPs, sysctls and timeouts, too.
        without: not these services, whatever else is said.
    """

    services: frozenset[Key] | None = None
    host: bool = True
    without: frozenset[Key] = frozenset()


EVERYTHING = Scope()


@dataclass(slots=True)
class Report:
    """What a pass did.

    Args:
        applied: operations done, in order, those of earlier attempts first.
        failed: operations that the kernel refused at the last attempt.
        skipped: operations not tried at the last attempt, since one before them failed.
        conflicts: services of others that the configuration wants otherwise.
        remaining: operations still to do although nothing failed.
        unsaved: why the state could not be kept after the kernel was changed; what was kept before
            claims too much, never too little.
        alone: the kernel has no IPVS, which decides how operations are told.
    """

    applied: list[Operation] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)
    skipped: list[Operation] = field(default_factory=list)
    conflicts: tuple[Conflict, ...] = ()
    remaining: tuple[Operation, ...] = ()
    unsaved: StateError | None = None
    alone: bool = False

    def told(self, operation: Operation) -> str:
        """An operation, as it is shown."""
        return words(operation, alone=self.alone)

    @property
    def commands(self) -> list[str]:
        """The operations done, as they are shown."""
        return [self.told(operation) for operation in self.applied]

    @property
    def clean(self) -> bool:
        """Whether the kernel now holds all that is desired, and the state is kept."""
        return not (self.failed or self.skipped or self.conflicts or self.remaining or self.unsaved)

    @property
    def unfinished(self) -> bool:
        """Whether trying again may help; conflicts end when somebody else ends them."""
        return bool(self.failed or self.skipped or self.remaining or self.unsaved)

    def undone(self) -> dict[Key | None, list[str]]:
        """What is not as it is to be, in words, by service; None for what is of no service."""
        found: dict[Key | None, list[str]] = {}
        for outcome in self.failed:
            found.setdefault(service_key(outcome.operation), []).append(str(outcome.error))
        for operation in self.skipped:
            line = f"not tried: {self.told(operation)}"
            found.setdefault(service_key(operation), []).append(line)
        for conflict in self.conflicts:
            found.setdefault(conflict.key, []).append(str(conflict))
        for operation in self.remaining:
            line = f"not in the kernel although applied: {self.told(operation)}"
            found.setdefault(service_key(operation), []).append(line)
        if self.unsaved is not None:
            found.setdefault(None, []).append(str(self.unsaved))
        return found

    def error(self) -> LbdrError | None:
        """All that went wrong, as one error; the class tells who must act."""
        if self.clean:
            return None
        lines = [line for lines in self.undone().values() for line in lines]
        lines.append(f"applied: {len(self.applied)} operations, which stay")
        hint = "what failed is tried again by the next `lbdr apply`, or by the daemon by itself"
        errors = [outcome.error for outcome in self.failed] + [self.unsaved]
        kinds = {type(error) for error in errors if error is not None}
        kind = kinds.pop() if len(kinds) == 1 and not self.conflicts else VerificationError
        return kind("\n".join(lines), hint=hint)
