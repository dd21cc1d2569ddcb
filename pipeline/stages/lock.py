"""One run at a time in a run folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewstep.errors import UserError


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold `folder`/.lock; UserError when another process holds it. The kernel frees it when a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8", opener=_no_link) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            remedy = f"is in use by another run (process {holder}); wait for it or give another --name"
            raise UserError(folder, None, remedy) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _no_link(path: str, flags: int) -> int:
    """A link in the lock's place is not followed: what it points to would be emptied."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
