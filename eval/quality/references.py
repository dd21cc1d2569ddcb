"""Features of the reference images, computed once and kept with their provenance.

The cache folder is $FEWSTEP_CACHE, by default ~/.cache/fewstep/references. A file is named by the hash of
(sha256 of the images' pixels, sha256 of the extractor, resize): another data set or extractor can't meet a
wrong file.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from fewstep.errors import UserError, unreadable
from fewstep.eval.features.extractors import Extractor, sha256_tensors
from fewstep.eval.features.overlap import each_batch
from fewstep.eval.images import check_varied, full_range_share, indexed, pixels_sha256
from fewstep.eval.interfaces import ALONE, ImageSource, IndexedImages, Shares
from fewstep.eval.quality.floor import half_distances
from fewstep.eval.quality.metrics import Statistics, statistics
from fewstep.files import (
    canonical_json,
    check_form,
    read_json,
    sealed,
    sha256_json,
    sweep,
    unsealed,
    write_bytes,
    write_json,
)

logger = logging.getLogger("fewstep")
BATCH = 200  # images in work at a time
DAY = 86400.0  # seconds
DAMAGED = "is no reference that fewstep wrote, or is damaged"
PROVENANCE = {"dataset": str, "split": (str, None), "count": int, "sha256": str, "extractor_name": str}


@dataclass(frozen=True)
class Reference:
    """What generated images are compared with.

    provenance: {"dataset", "split", "count", "sha256"} of the images; "split" and "count" are None where only
    statistics are given, and "sha256" is then that of their file. Where the images are known, "full_range" is the
    share of them that reach from 0 to 255. features: [M, D] float32, None where only statistics are given: KID,
    precision and recall need features.
    """

    provenance: dict[str, Any]
    features: Tensor | None
    statistics: Statistics


def cache_folder() -> Path:
    """$FEWSTEP_CACHE, by default ~/.cache/fewstep/references."""
    return Path(os.environ.get("FEWSTEP_CACHE", Path.home() / ".cache" / "fewstep" / "references"))


def extract(
    extractor: Extractor, source: ImageSource, what: str, batch_size: int = BATCH, shares: Shares = ALONE
) -> Tensor:
    """Features float32 [N, D] of all images of a source, with a progress bar named `what`."""
    features = torch.empty(len(source), extractor.dim)

    def store(which: slice, batch: Tensor, of_batch: Tensor) -> None:
        features[which] = of_batch

    each_batch(source, extractor, batch_size, what, store, shares)
    return features


def load_reference(images: Tensor | IndexedImages, provenance: dict[str, Any], extractor: Extractor) -> Reference:
    """The reference made of uint8 [M, C, H, W]: from the cache, or computed and put there.

    `provenance` is {"dataset", "split"}; count and sha256 are added here.
    UserError: fewer than four images; the cache folder cannot be written.
    """
    if len(images) < 4:
        raise UserError("data.reference_split", len(images), "images are too few to measure against; give 4 or more")
    check_varied("data.reference_split", images)
    provenance |= {"count": len(images), "sha256": pixels_sha256(images), "full_range": full_range_share(images)}
    key = sha256_json([provenance["sha256"], extractor.sha256, extractor.resize])[:32]
    path = cache_folder() / f"{extractor.name}-{key}.safetensors"
    features = None
    if path.is_file():
        try:
            features = read_features(path)[0]
        except UserError as error:
            logger.warning("%s; computing it again", error)
    if features is None:
        features = extract(extractor, indexed(images), f"reference features ({extractor.name})")
        with _cache_errors(path):
            write_features(path, features, provenance, extractor)
    return Reference(provenance, features, statistics(features))


def write_features(path: Path, features: Tensor, provenance: dict[str, Any], extractor: Extractor) -> None:
    """Features [M, D] as a safetensors file with their provenance and hashes of both inside."""
    tensors = {"features": features}
    facts = {**provenance, **{f"extractor_{key}": value for key, value in extractor.to_json().items()}}
    metadata = {"provenance": canonical_json(facts), "sha256_tensors": sha256_tensors(tensors)}
    metadata["sha256_provenance"] = sha256_json(metadata["provenance"])
    write_bytes(path, save(tensors, metadata))


def load_halves(features: Tensor, kid_subset_size: int) -> dict[str, Any]:
    """`floor.half_distances` of reference features (minutes for Inception's 2048), kept in the cache folder."""
    digest = sha256_tensors({"features": features})
    path = cache_folder() / f"halves-{digest[:32]}-{kid_subset_size}.json"
    if path.is_file():
        with suppress(UserError):
            if (kept := unsealed(read_json(path))) is not None:
                return kept
        logger.warning("%s: is damaged or of an earlier version; computing it again", path)
    halves = half_distances(features, kid_subset_size)
    with _cache_errors(path):
        write_json(path, sealed(halves))
    return halves


@contextmanager
def _cache_errors(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, older_than=DAY)  # others may be writing
        yield
    except OSError as error:
        raise UserError(path, None, f"cannot be written ({error}); set FEWSTEP_CACHE to another folder") from None


def read_features(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """What `write_features` wrote: features [M, D] and their provenance; UserError where the file is damaged."""
    provenance = read_provenance(path)
    with unreadable(path, DAMAGED), safe_open(path, "pt") as file:
        metadata, features = file.metadata() or {}, file.get_tensor("features")
    if sha256_tensors({"features": features}) != metadata.get("sha256_tensors"):
        raise UserError(path, None, "is damaged: its features do not give the hash stored with them")
    return features, provenance


def read_provenance(path: Path) -> dict[str, Any]:
    """The provenance in a file of `write_features`, without its features; UserError where it cannot be read."""
    with unreadable(path, DAMAGED), safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        provenance = json.loads(metadata["provenance"])
        if metadata.get("sha256_provenance") not in (None, sha256_json(metadata["provenance"])):
            raise UserError(path, None, "is damaged: its provenance does not give the hash stored with it")
    check_form(path, provenance, PROVENANCE)
    return provenance
