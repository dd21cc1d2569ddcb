"""The evaluations of a network while a sampler makes images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def each_evaluation(network: nn.Module, note: Callable[[int], None]) -> Iterator[None]:
    """`note` is called before each call of the network, with the rows of its batch.

    A row is one evaluation: guidance that calls the network on a doubled batch pays for two an image. What `note`
    raises ends the sampler.
    """

    def hook(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        note(next(len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 1))

    handle = network.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
