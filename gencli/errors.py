"""The one exception that a user is meant to read."""

from __future__ import annotations


class GencliError(Exception):
    """A failure with one clear line and the next step; the command line prints it and exits with `code`.

    Args:
        message: what went wrong, naming the thing and its value.
        hint: the next step, copy-ready where it is a command.
        code: exit status; 2 is the user's mistake, 1 is the machine's (disk full, read-only folder).
    """

    def __init__(self, message: str, hint: str = "", code: int = 2) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
