"""Features of the reference images, computed once and kept with their provenance.

The cache folder is $FEWSTEP_CACHE, by default ~/.cache/fewstep/references. A file is named by the hash of
(sha256 of the images' pixels, sha256 of the extractor, resize): another data set or extractor can't meet a
wrong file.
"""

import json
import logging
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from fewstep.errors import UserError
from fewstep.eval.extractors import Extractor, sha256_tensors
from fewstep.eval.floor import half_distances
from fewstep.eval.metrics import Statistics, statistics
from fewstep.files import canonical_json, read_json, sha256_json, write_bytes, write_json

logger = logging.getLogger("fewstep")
BATCH = 100  # images at once in the extractor


@dataclass(frozen=True)
class Reference:
    """What generated images are compared with.

    provenance: {"dataset", "split", "count", "sha256"} of the images. features: [M, D] float32.
    halves: see floor.half_distances.
    """

    provenance: dict[str, Any]
    features: Tensor
    statistics: Statistics
    halves: dict[str, Any]


def sha256_images(images: Tensor) -> str:
    """sha256 of the shape (as a JSON list) and the pixels of uint8 [N, C, H, W]."""
    digest = sha256(json.dumps(list(images.shape)).encode())
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()


def cache_folder() -> Path:
    """$FEWSTEP_CACHE, by default ~/.cache/fewstep/references."""
    return Path(os.environ.get("FEWSTEP_CACHE", Path.home() / ".cache" / "fewstep" / "references"))


def extract(extractor: Extractor, images: Tensor, what: str) -> Tensor:
    """Features float32 [N, D] of uint8 [N, C, H, W], with a progress bar named `what`."""
    parts = []
    with tqdm(total=len(images), desc=what, unit="image", disable=None, leave=False) as bar:
        for batch in images.split(BATCH):
            parts.append(extractor(batch))
            bar.update(len(batch))
    return torch.cat(parts)


def load_reference(images: Tensor, provenance: dict[str, Any], extractor: Extractor, kid_subset_size: int) -> Reference:
    """The reference made of uint8 [M, C, H, W]: from the cache, or computed and put there.

    `provenance` is {"dataset", "split"}; count and sha256 are added here.
    UserError: fewer than four images; the cache folder cannot be written.
    """
    if len(images) < 4:
        raise UserError("data.reference_split", len(images), "images are too few to measure against; give 4 or more")
    provenance = {**provenance, "count": len(images), "sha256": sha256_images(images)}
    key = sha256_json([provenance["sha256"], extractor.sha256, extractor.resize])[:32]
    path = cache_folder() / f"{extractor.name}-{key}.safetensors"
    features = _read(path)
    if features is None:
        features = extract(extractor, images, f"features of {len(images)} reference images ({extractor.name})")
        _write(path, features, {**provenance, **{f"extractor_{k}": v for k, v in extractor.to_json().items()}})
    halves_path = path.with_name(f"{path.stem}-halves-{kid_subset_size}.json")
    halves = _halves(halves_path, features, kid_subset_size)
    return Reference(provenance, features, statistics(features), halves)


def _read(path: Path) -> Tensor | None:
    """The features of a cache file; None when there is none, or when it is damaged, which is said."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            features, stored = file.get_tensor("features"), (file.metadata() or {}).get("sha256_tensors")
    except SafetensorError as error:
        reason = str(error)
    else:
        if sha256_tensors({"features": features}) == stored:
            return features
        reason = "its features do not give the hash stored with them"
    logger.warning("%s is damaged (%s); computing it again", path, reason)
    return None


def _write(path: Path, features: Tensor, provenance: dict[str, Any]) -> None:
    tensors = {"features": features}
    metadata = {"provenance": canonical_json(provenance), "sha256_tensors": sha256_tensors(tensors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save(tensors, metadata))
    except OSError as error:
        raise UserError(path, None, f"cannot be written ({error}); set FEWSTEP_CACHE to another folder") from None


def _halves(path: Path, features: Tensor, kid_subset_size: int) -> dict[str, Any]:
    """Distances of the halves (minutes for Inception's 2048 features), kept beside the features."""
    digest = sha256_tensors({"features": features})
    if path.is_file():
        stored = read_json(path)
        if stored.get("sha256_features") == digest:
            return {key: stored[key] for key in ("fd", "kid", "half")}
    halves = half_distances(features, kid_subset_size)
    write_json(path, {**halves, "sha256_features": digest})
    return halves
