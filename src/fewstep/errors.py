"""The one exception for faults of the user's making, and how others are quoted in it."""


def first_line(error: Exception) -> str:
    """The first line of an exception's text, at most 200 characters; the name of its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


class UserError(ValueError):
    """A wrong key, value, file or combination: one line naming it, its value and the remedy.

    `where` is a dotted configuration key (`data.source`) or a path. The command line prints the line and
    exits with 2; in Python it is an ordinary ValueError.
    """

    def __init__(self, where: object, value: object, remedy: str) -> None:
        self.where, self.value, self.remedy = str(where), value, remedy
        shown = "" if value is None else f" {value!r}:"
        super().__init__(" ".join(f"{where}:{shown} {remedy}".split()))
