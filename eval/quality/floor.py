"""The floor: what the Frechet distance reads between real images and real images, at given sample sizes.

FD over n generated and m real images is too large by about c (1/n + 1/m), with c a property of the features.
c is measured on real images: FD of two disjoint halves, mean over 10 splits, is c (2 / half).
"""

from typing import Any

import torch
from torch import Tensor

from fewstep.eval.quality.metrics import frechet_distance, kernel_distance, statistics

SPLITS = 10


def half_distances(real: Tensor, kid_subset_size: int) -> dict[str, Any]:
    """Mean distance of two disjoint random halves of real features [M, D], over 10 splits by fixed seeds.

    {"fd", "kid" (of the first split; None when a half is smaller than a KID subset), "half"}.
    """
    half = len(real) // 2
    orders = [torch.randperm(len(real), generator=torch.Generator().manual_seed(seed)) for seed in range(SPLITS)]
    pairs = [(real[order[:half]], real[order[half : 2 * half]]) for order in orders]
    fd = [frechet_distance(statistics(a), statistics(b)) for a, b in pairs]
    kid = kernel_distance(*pairs[0], kid_subset_size) if kid_subset_size <= half else None
    return {"fd": sum(fd) / SPLITS, "kid": kid, "half": half}


def floor(halves: dict[str, Any], n: int, m: int) -> dict[str, Any]:
    """The floor for n generated and m real images: FD of the halves times (1/n + 1/m) / (2/half).

    KID has no such bias: its value between halves, zero but for noise, is given as it is.
    """
    scale = (1 / n + 1 / m) / (2 / halves["half"])
    how = (
        f"FD of two disjoint halves ({halves['half']} images each) of the real images, mean of {SPLITS} "
        f"splits, times (1/{n} + 1/{m}) / (2/{halves['half']}); KID between the halves of one split"
    )
    return {"fd": halves["fd"] * scale, "kid": halves["kid"], "n": n, "m": m, "how": how}
