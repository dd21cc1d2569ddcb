"""The one exception for faults of the user's making, and how others are quoted in it."""

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 2000  # characters of a message
_LONGEST_VALUE = 200


def printable(text: str) -> str:
    """Text with everything that a terminal would not show as it is (controls, escapes, half characters) as \\x1b."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, at most 200 characters; the name of its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


class UserError(ValueError):
    """A wrong key, value, file or combination: one line naming it, its value and the remedy.

    `where` is a dotted configuration key (`data.source`) or a path. The command line prints the line and
    exits with 2; in Python it is an ordinary ValueError. The line is printable and at most 2,000 characters long.
    """

    def __init__(self, where: object, value: object, remedy: str) -> None:
        self.where, self.value, self.remedy = str(where), value, remedy
        shown = "" if value is None else f" {_quoted(value)}:"
        message = printable(" ".join(f"{where}:{shown} {remedy}".split()))
        super().__init__(message if len(message) <= LONGEST else f"{message[: LONGEST - 3]}...")


def _quoted(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list inside itself
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


@contextmanager
def unreadable(where: object, remedy: str, value: object = None) -> Iterator[None]:
    """Whatever a library raises over a file that anybody may have made is a UserError: `remedy` and, in (), why.

    Libraries raise anything over a damaged file; a UserError passes as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(where, value, f"{remedy} ({first_line(error)})") from None
