"""A data set of the Hugging Face hub as tables, through `datasets`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import UserError
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.tables import TABLE, Column, columns_of, parts, pick

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from pyarrow import Table

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?", re.ASCII)
OFFLINE = (
    "the hub cannot be reached and nothing is cached: use parquet:PATH or imagefolder:PATH, or set HF_ENDPOINT to a "
    "mirror"
)


class HubTables:
    """One split of a data set of the hub, cached or streamed."""

    parts = 1
    columns: Mapping[str, Column]
    splits: Mapping[str, str]
    left_out: Sequence[str] = ()
    folders: Sequence[str | Path]
    files: Sequence[Path]

    def __init__(
        self, config: DataConfig, name: str, split: str, *, streamed: bool, revision: str | None = None
    ) -> None:
        import datasets
        from datasets import config as places

        found = _load(config, name, streamed=streamed, revision=revision)
        dataset: Dataset | IterableDataset = pick(config, found, split)
        self.columns = columns_of(dataset.features or {})
        images = [name for name, column in self.columns.items() if column.is_image]
        for each in images:
            dataset = dataset.cast_column(each, datasets.Image(decode=False))
        self.dataset = dataset
        self.folders = [places.HF_CACHE_HOME, places.HF_DATASETS_CACHE]
        declared: Mapping[Any, Any] = dataset.info.splits or {}
        self.splits = {str(each): f"{declared[each].num_examples:,}" if each in declared else "" for each in found}
        self.files = [Path(each["filename"]) for each in getattr(dataset, "cache_files", ())]
        self.counts: list[int | None] = [declared[split].num_examples if split in declared else None]

    def name(self, part: int) -> None:
        """See `Tables`."""

    def tables(self, columns: Sequence[str], part: int, skip: int) -> "Iterator[Table]":
        """See `Tables`."""
        for table in self.dataset.with_format("arrow").iter(batch_size=TABLE):
            if skip < len(table):
                yield table.select(list(columns)).slice(skip)  # type: ignore[union-attr] # an arrow table
            skip = max(skip - len(table), 0)

    def highest(self, column: str) -> None:
        """See `Tables`; a data set is not read through for it."""


def _load(config: DataConfig, name: str, *, streamed: bool, revision: str | None) -> Any:  # noqa: ANN401 - of `datasets`
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    check_hub_id(config, name)
    try:
        options: Any = {"revision": revision or config.revision} | ({"streaming": True} if streamed else {})
        return load_dataset(name, config.config_name, **options)
    except DatasetNotFoundError:
        at = f" at revision {config.revision}" if config.revision else ""
        raise UserError("data.source", config.source, f"no such public data set on the hub{at}") from None
    except ConnectionError:
        raise UserError("data.source", config.source, OFFLINE) from None


def check_hub_id(config: DataConfig, name: str) -> None:
    """Raise UserError for what is no id of a data set on the hub."""
    if not _HUB_ID.fullmatch(name) or Path(name).exists():
        remedy = "is no id of a data set on the hub, or the name of a file or folder here; local data are parquet:PATH"
        raise UserError("data.source", config.source, f"{remedy} or imagefolder:PATH")


def hub_commit(config: DataConfig) -> str:
    """Return the commit that `config.revision` names, or the newest. UserError: it is not there."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    _, name, _ = parts(config)
    check_hub_id(config, name)
    try:
        commit = HfApi().dataset_info(name, revision=config.revision).sha
    except HfHubHTTPError as error:
        at = f" at revision {config.revision}" if config.revision else ""
        remedy = f"no such public data set on the hub{at} ({type(error).__name__})"
        raise UserError("data.source", config.source, remedy) from None
    except (OfflineModeIsEnabled, OSError):
        raise UserError("data.source", config.source, OFFLINE) from None
    assert commit is not None
    return commit
