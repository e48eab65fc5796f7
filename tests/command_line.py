"""Management commands as a shell sees them: exit code, standard output, standard error."""

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from django.core.management import load_command_class


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def manage(command: str, *arguments: str) -> Result:
    """Run a command in this process, with argument parsing, system checks and error handling as in `manage.py`."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            load_command_class("migrations_api", command).run_from_argv(["manage.py", command, *arguments])
        except SystemExit as error:
            code = error.code
    assert code is None or isinstance(code, int), code
    return Result(code or 0, out.getvalue(), err.getvalue())
