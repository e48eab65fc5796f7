"""What an execution is told beside its plan."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Options:
    """Django's `migrate` options that change what is done rather than what is shown."""

    fake: bool = False
    fake_initial: bool = False
    run_syncdb: bool = False
    prune: bool = False
    # Whether a plan that undoes migrations may be carried out; for the API that takes an admin's confirmation.
    allow_backwards: bool = True
    # A tenant that has nothing yet is copied from a template if that is exact, and otherwise migrated.
    template: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the plan decides what is done, so that it is the same for the next tenant."""
        return not (self.fake or self.fake_initial or self.run_syncdb or self.prune)
