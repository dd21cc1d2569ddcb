"""References as files: our own, torch-fidelity's cache, and the .npz of `mu` and `sigma` that others publish.

Ours holds the features, so every metric can be measured against it, and names its data and its extractor. The
others are mean and covariance, or bare features, of whatever made them: the file's sha256 stands in the protocol.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.array_file import array_sizes, read_arrays, read_torch
from fewstep.eval.features.extractors import Extractor
from fewstep.eval.quality.metrics import Statistics, statistics
from fewstep.eval.quality.references import Reference, read_features, read_provenance
from fewstep.files import sha256_file

KEY = "eval.reference"
FORMS = "a .safetensors of fewstep reference, a .pt of torch-fidelity's cache, or an .npz with mu and sigma"


def read_reference(path: Path, extractor: Extractor) -> Reference:
    """The reference in a file. UserError: missing, damaged, of another form, or of another extractor."""
    check_reference_path(path)
    return {".safetensors": _ours, ".pt": _torch_fidelity, ".npz": _npz}[path.suffix](path, extractor)


def check_reference_path(path: Path) -> None:
    """UserError where there is no file, or its name is of no form that is read; the content is not looked at."""
    if not path.is_file():
        raise UserError(KEY, str(path), f"no such file; give {FORMS}")
    if path.suffix not in (".safetensors", ".pt", ".npz"):
        raise UserError(KEY, str(path), f"is not known by its name; give {FORMS}")


def reference_extractor(path: Path) -> str | None:
    """The extractor's name that stands in one of our own reference files; None for the other forms."""
    return read_provenance(path)["extractor_name"] if path.suffix == ".safetensors" else None


def _ours(path: Path, extractor: Extractor) -> Reference:
    features, provenance = read_features(path)
    for key, ours in extractor.to_json().items():
        if (theirs := provenance.pop(f"extractor_{key}", None)) != ours:
            remedy = f"was made with another extractor ({key} {theirs!r}, not {ours!r}): make it again"
            raise UserError(KEY, str(path), remedy)
    _check_features(path, features, extractor)
    return Reference(provenance, features, statistics(features))


def _torch_fidelity(path: Path, extractor: Extractor) -> Reference:
    """`*-stat-fid-2048.pt` (a dictionary of mu and sigma) or `*-features-2048.pt` (a tensor [M, D])."""
    value = read_torch(KEY, path, "a cache of torch-fidelity")
    if isinstance(value, Tensor):
        _check_features(path, value, extractor)
        return Reference(_provenance(path, len(value)), value.float(), statistics(value.float()))
    if not isinstance(value, dict) or not {"mu", "sigma"} <= value.keys():
        raise UserError(KEY, str(path), "holds neither features nor mu and sigma")
    return Reference(_provenance(path, None), None, _checked(path, value["mu"], value["sigma"], extractor))


def _npz(path: Path, extractor: Extractor) -> Reference:
    most = 8 * extractor.dim**2 + 1000  # bytes of a float64 covariance and its header
    sizes = array_sizes(KEY, path)
    if missing := [name for name in ("mu", "sigma") if name not in sizes]:
        raise UserError(KEY, str(path), f"holds no {' and no '.join(missing)}")
    if max(sizes["mu"], sizes["sigma"]) > most:
        remedy = f"its mu or sigma is larger than {extractor.dim} features need: made with another extractor"
        raise UserError(KEY, str(path), remedy)
    mu, sigma = read_arrays(KEY, path, ("mu", "sigma"))
    return Reference(_provenance(path, None), None, _checked(path, mu, sigma, extractor))


def _checked(path: Path, mu: object, sigma: object, extractor: Extractor) -> Statistics:
    """mu [D] and sigma [D, D] as Statistics, if they are finite and of the extractor's size."""
    mean, covariance = (_float64(path, name, value) for name, value in (("mu", mu), ("sigma", sigma)))
    if mean.shape != (extractor.dim,) or covariance.shape != (extractor.dim, extractor.dim):
        remedy = f"has mu {mean.shape} and sigma {covariance.shape}; {extractor.name} gives {extractor.dim} features"
        raise UserError(KEY, str(path), f"{remedy}: made with another extractor")
    if not np.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6):
        raise UserError(KEY, str(path), "its sigma is not symmetric, so it is no covariance")
    return Statistics(mean, covariance)


def _float64(path: Path, name: str, value: object) -> NDArray[np.float64]:
    array = value.double().numpy() if isinstance(value, Tensor) and not value.is_complex() else np.asarray(value)
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise UserError(KEY, str(path), f"its {name} is not made of finite numbers")
    return array.astype(np.float64)


def _check_features(path: Path, features: Tensor, extractor: Extractor) -> None:
    if not features.is_floating_point():
        raise UserError(KEY, str(path), f"its features are {features.dtype}, not floating-point numbers")
    if features.dim() != 2 or features.shape[1] != extractor.dim or len(features) < 4:
        remedy = f"holds features {tuple(features.shape)}; needed are 4 or more rows of {extractor.dim}"
        raise UserError(KEY, str(path), f"{remedy} ({extractor.name})")
    if not torch.isfinite(features).all():
        raise UserError(KEY, str(path), "its features are not finite")


def _provenance(path: Path, count: int | None) -> dict[str, Any]:
    return {"dataset": path.name, "split": None, "count": count, "sha256": sha256_file(path)}
