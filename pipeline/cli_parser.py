"""argparse as the commands use it: whatever is wrong is a UserError, one line."""

import argparse
from typing import NoReturn

from fewstep.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse whose errors are UserErrors instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        where, _, text = message.removeprefix("argument ").partition(": ")
        if not message.startswith("argument ") or not text:
            where, text = self.prog, f"{message} (see {self.prog} --help)"
        raise UserError(where, None, text)
