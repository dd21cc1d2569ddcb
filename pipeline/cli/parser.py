"""argparse as the commands use it: whatever is wrong is a UserError, one line."""

import argparse
from pathlib import Path
from typing import NoReturn

from fewstep.errors import UserError


def check_parent(out: Path) -> None:
    """UserError where the folder that a file is to be written into does not exist."""
    if not out.absolute().parent.is_dir():
        raise UserError("--out", str(out), f"there is no folder {out.parent}: make it first")


class Parser(argparse.ArgumentParser):
    """argparse whose errors are UserErrors instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        where, _, text = message.removeprefix("argument ").partition(": ")
        if not message.startswith("argument ") or not text:
            where, text = self.prog, f"{message} (see {self.prog} --help)"
        raise UserError(where, None, text)
