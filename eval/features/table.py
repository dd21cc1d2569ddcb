"""The feature extractors there are, one entry each. Nothing here imports torch.

A new one is an entry here and the module that it names, which is imported when the extractor is asked for. That has
`read_weights(path: Path | None) -> dict[str, Tensor]`, the tensors of a file or of the published or shipped weights,
checked; and `open_network(tensors, device) -> OpenNetwork`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import UserError

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"
TIMEOUT = 5.0  # seconds in which a server has to answer


@dataclass(frozen=True, kw_only=True)
class Specification:
    """What is known of an extractor before its network is opened.

    module: which opens it. about: it in a few words. dim: number of features. metric_name: what the Frechet distance
    of its features is called. resize: how images become the network's. channels: that the network takes; grey is
    repeated where it takes 3. only: the one (C, H, W) that it judges, None: any. shipped: its weights come with the
    package, and no others do. cpu_batch: images at once on a processor; larger batches leave its cache (Inception:
    6.2 images/s at 100 against 9.5 at 8, two cores of an AMD EPYC) or its memory (DINOv2).
    """

    name: str
    module: str
    about: str
    dim: int
    metric_name: str
    resize: str
    channels: int = 3
    only: tuple[int, int, int] | None = None
    shipped: bool = False
    cpu_batch: int = 100

    def check_shape(self, shape: Sequence[int | None]) -> None:
        """UserError where it does not judge images of this (C, H, W); None: not known yet."""
        if self.only and any(n not in (None, only) for n, only in zip(shape, self.only, strict=True)):
            given = "x".join("?" if n is None else str(n) for n in shape)
            remedy = f"judges images of {'x'.join(map(str, self.only))} (CxHxW) only, not {given}"
            others = "use small-cnn, which needs no download, or inception (FID)"
            raise UserError("eval.extractor", self.name, f"{remedy}; {others}")


EXTRACTORS = {
    each.name: each
    for each in (
        Specification(
            name="digits-cnn",
            module="fewstep.eval.features.digits_cnn",
            about="shipped, 8x8 grey only",
            dim=64,
            metric_name="FD (digits-cnn)",
            resize="none (8x8)",
            channels=1,
            only=(1, 8, 8),
            shipped=True,
        ),
        Specification(
            name="small-cnn",
            module="fewstep.eval.features.small_cnn",
            about="shipped, any small images, no FID",
            dim=64,
            metric_name="FD (small-cnn)",
            resize="pixels repeated to 32x32 or more, then bilinear with antialiasing to 32x32",
            shipped=True,
        ),
        Specification(
            name="inception",
            module="fewstep.eval.features.inception",
            about="FID",
            dim=2048,
            metric_name="FID",
            resize="bilinear to 299x299 as TensorFlow 1 does it (torch-fidelity)",
            cpu_batch=8,
        ),
        Specification(
            name="dinov2",
            module="fewstep.eval.features.dinov2",
            about="FD-DINOv2",
            dim=1024,
            metric_name="FD-DINOv2",
            resize="bilinear to 224x224 as TensorFlow 1 does it (torch-fidelity)",
            cpu_batch=8,
        ),
    )
}


def default_extractor(weights: Path | None = None) -> tuple[str, str]:
    """Return the extractor to use if none is asked for, and a line that says why it is not inception, or "".

    It is inception if its weights are given, lie in torch's hub folder or can be fetched, and small-cnn otherwise. This
    holds for all images but the 8x8 digits, which have an extractor of their own.
    """
    from urllib.request import urlopen  # which the command line's help does without

    folder = hub_folder() / "checkpoints"
    if weights is not None or (folder / INCEPTION).is_file():
        return "inception", ""
    try:
        with urlopen(INCEPTION_URL, timeout=TIMEOUT):
            return "inception", ""
    except OSError as error:
        why = f"Inception's weights are not in {folder} and cannot be fetched ({error})"
        return "small-cnn", f"eval.extractor: small-cnn, because {why}; give --eval.weights PATH for FID"


def hub_folder() -> Path:
    """Return torch.hub.get_dir() by its documented rule, without torch: $TORCH_HOME/hub, or in $XDG_CACHE_HOME."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub"
