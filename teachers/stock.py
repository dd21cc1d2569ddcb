"""The parts of a stock diffusers folder, unet/ and scheduler/, read with every fault as one line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from diffusers import CMStochasticIterativeScheduler, DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.utils import logging

from fewstep.errors import UserError, unreadable
from fewstep.files import check_not_pointer, read_json
from fewstep.teachers.folder import ModelFolder
from fewstep.teachers.refusal import LONGEST_SIDE, check_numbers

SIDES = range(1, LONGEST_SIDE + 1)  # pixels
Scheduler = TypeVar("Scheduler", DDPMScheduler, DDIMScheduler, CMStochasticIterativeScheduler)


@contextmanager
def quiet() -> Iterator[None]:
    """Diffusers without progress bars and without warnings of its logger; both are put back as they were."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_unet(model: ModelFolder, role: str) -> UNet2DModel:
    """A UNet2DModel from its folder, whose `role` the errors name.

    Raises UserError for files that are absent, malformed or damaged, for weights that are no safetensors, not exactly
    the network's or not finite, for classes that are no table of embeddings and for images without a size. Sides that
    are the same number twice become one.
    """
    source, where = model.path, model.network / "config.json"
    config = read_json(where, {})
    check_numbers(where, config)
    for path in model.weights:
        check_not_pointer(path)
    if (kind := config.get("class_embed_type")) is not None:
        remedy = "only a table of classes (num_class_embeds) is read"
        raise UserError(f"{where}: class_embed_type", kind, remedy)
    with unreadable(source, f"cannot be loaded as a {role}"), quiet():
        options: dict[str, Any] = {"variant": model.variant or None, "use_safetensors": True}
        loaded: Any = UNet2DModel.from_pretrained(str(model.network), output_loading_info=True, **options)
    unet, info = loaded
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            remedy = f"the weights in {model.network.name}/ are not its config's: {kind} {sorted(info[kind])[:3]}"
            raise UserError(source, None, remedy)
    if bad := [name for name, tensor in unet.state_dict().items() if not bool(tensor.isfinite().all())]:
        raise UserError(source, None, f"its weights are damaged: {bad[0]} holds NaN or infinity")
    size = unet.config["sample_size"]
    sides = [size] if isinstance(size, int) else size
    if not isinstance(sides, list | tuple) or len(sides) not in (1, 2) or any(s not in SIDES for s in sides):
        raise UserError(f"{where}: sample_size", size, "give the images' side in pixels")
    unet.register_to_config(_name_or_path="")  # where it was read: a copy that is saved elsewhere needs no such path
    if len({*sides}) == 1:
        unet.register_to_config(sample_size=sides[0])
    return unet


def load_scheduler(
    model: ModelFolder, kind: type[Scheduler], role: str, config: Mapping[str, Any] | None = None
) -> Scheduler:
    """Read a scheduler of a class from a model's folder, or make it of `config`, which was read there.

    Raises UserError where it is absent, malformed or damaged.
    """
    where = model.scheduler / "scheduler_config.json"
    read = read_json(where, {})
    check_numbers(where, read)
    with unreadable(model.path, f"cannot be loaded as a {role}"), quiet():
        return cast(Scheduler, kind.from_config(dict(read if config is None else config)))
