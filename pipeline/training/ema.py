"""The exponential moving average of a network's weights."""

import copy
from collections.abc import Iterable
from functools import cached_property

from torch import Tensor, nn

from fewstep.pipeline.training.flat import Flat, flattened
from fewstep.teachers.interfaces import Following


class EMA:
    """A frozen copy of `network` that follows it with a half-life in images.

    While fewer than 20 half-lives have passed the half-life is a twentieth of the images seen (Karras 2022, code:
    ema_rampup_ratio 0.05), so that the first weights are forgotten.
    """

    def __init__(self, network: nn.Module, halflife_kimg: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.halflife_images = halflife_kimg * 1000
        self._followed = network
        self._flat: tuple[Tensor, Tensor] | None = None

    def lie_like(self, flats: Iterable[Flat]) -> None:
        """Put the average's weights into one piece, where those of the network are one of these."""
        for flat in flats:
            if flat.holds(list(self._followed.parameters())):
                self._flat = flattened(list(self.network.parameters())), flat.whole

    @cached_property
    def _following(self) -> Following:
        return Following(self.network, self._followed, self._flat)

    def update(self, images: int, batch_size: int) -> None:
        """Move towards the network after a step of `batch_size` images, `images` seen in all."""
        halflife = min(self.halflife_images, images * 0.05)
        weight = 1 - 0.5 ** (batch_size / max(halflife, 1e-8))
        self._following.move(weight)
