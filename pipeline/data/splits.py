"""Which split a file or a folder belongs to, by its name, as `datasets` documents it for data on the hub."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in WORDS.items() for word in words}
_ANY = "|".join(sorted(_SPLIT_OF, key=len, reverse=True))
_WITH = "(?:images?|imgs?|data|set|[0-9]+)"
_FOLDER = re.compile(rf"(?:{_WITH}[-_. ]?)?(?P<word>{_ANY})(?:[-_. ]?{_WITH})?", re.IGNORECASE)
_SHARD = re.compile(r"(?P<prefix>.+?)-\d+-of-\d+(?:-[0-9a-f]+)?")


def canonical_split(name: str) -> str:
    """Return train, validation or test for a word that means one of them; any other name as it is."""
    return _SPLIT_OF.get(name.lower(), name)


def split_of_folder(name: str) -> str | None:
    """Return the split that a folder of images declares (train, Val, test_images, train2017), or None."""
    found = _FOLDER.fullmatch(name)
    return found and _SPLIT_OF[found["word"].lower()]


def split_of_words(name: str) -> str | None:
    """Return the split whose word stands in a name between `-`, `_`, `.`, spaces or digits, or None.

    Of several it is the first that is not train: what may be held out is never taken for training images.
    """
    found = {_SPLIT_OF[word]: None for word in re.split(r"[-._ 0-9]+", name.lower()) if word in _SPLIT_OF}
    return next((split for split in found if split != "train"), next(iter(found), None))


def splits_of_files(names: Iterable[str]) -> dict[str, list[str]]:
    """Sort files, given by their paths in a folder, into splits.

    The file's own name decides (`train-00000-of-00002-HASH`, `NAME-test`, `test_0`), then the innermost folder with a
    split's word (`test/0.parquet`, `partial-train/0.parquet`). Shards with other names are splits of their own where
    there are several names (`extra-00000-of-00001` beside `train-...`). All others are train.
    """
    prefixes: dict[str, str | None] = {}
    for name in names:
        path = PurePosixPath(name)
        shard = _SHARD.fullmatch(path.stem)
        own = split_of_words(shard["prefix"] if shard else path.stem)
        around = (split_of_words(part) for part in reversed(path.parts[:-1]))
        prefixes[name] = own or next(filter(None, around), None) or (shard and shard["prefix"])
    several, found = len({*prefixes.values()}) > 1, dict[str, list[str]]()
    for name, prefix in prefixes.items():
        split = prefix if prefix in WORDS or (several and prefix) else "train"
        found.setdefault(split or "train", []).append(name)
    return found
