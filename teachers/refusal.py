"""Why a model's folder cannot be distilled, by its configurations and the headers of its weights alone. No torch.

`inspect` reports it, loading and conversion raise it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.errors import UserError, unreadable
from fewstep.files import check_not_pointer, safetensors_header
from fewstep.teachers.family import family_of
from fewstep.teachers.fields import check_old
from fewstep.teachers.folder import OWN, ModelFolder, shards, unsupported_pipeline

FOLDED = ("v_prediction", "edm")
"""Scalings under which a student computes what its teacher does, but for the time embedding."""
REGRESSED = ("epsilon", "sample", "flow_matching", "ve")
"""Scalings from which a student starts with the teacher's weights and is regressed onto its denoiser."""
CHANNELS = (1, 3)
"""Of images: grey or RGB."""
LONGEST_SIDE = 4096  # pixels
PICKLED = "its weights are a pickle, which can run code: make safetensors of it with fewstep convert"
LARGEST = 1_000_000  # a whole number in a model's configuration
MOST_LAYERS = 200
LONGEST_LIST, LONGEST_TABLE = 1000, 100_000
NETWORKS = ("UNet2DModel", "UNetUnconditionalModel")
"""What diffusers calls the network, and what it did before 0.2; it loads both as a UNet2DModel."""


def why_not(model: ModelFolder) -> str | None:
    """Return why a model cannot be distilled, in one line that names files within its folder, or None."""
    try:
        if (why := unsupported_pipeline(model.index)) is not None:
            return why
        _check_network(model)
        family = family_of(model)
        why = refusal(model.unet, None if family is None else family.prediction)
        if why is not None:
            return why
        if model.null_class and (model.unet.get("num_class_embeds") or 0) < 2:
            raise UserError(model.path / OWN, None, "null_class is true, but there are no classes to mean none by")
        _check_weights(model)
    except UserError as error:
        return str(error).removeprefix(f"{model.path}: ").replace(f"{model.path}/", "")
    return None


def refusal(unet: Mapping[str, Any], prediction: str | None) -> str | None:
    """Return why no student can be made of a UNet2DModel of this configuration under a scaling, or None."""
    channels, rows = unet.get("in_channels", 3), unet.get("num_class_embeds")
    if prediction == "consistency":
        return "it is a student already: measure it, or export it"
    if prediction is None:
        return "scheduler_config.json: no such file; it says what the network predicts"
    if channels not in CHANNELS or isinstance(channels, bool):
        return f"its images have {channels!r} channels (in_channels); only grey (1) and RGB (3) are supported"
    if (kind := unet.get("class_embed_type")) is not None:
        return f"class_embed_type: {kind!r}: only a table of classes (num_class_embeds) is supported"
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        return f"its number of classes (num_class_embeds) is {rows!r}"
    times = unet.get("time_embedding_type", "positional")
    if times != "positional" and (times != "fourier" or prediction != "ve"):
        return f"its time embedding is {times}; positional is needed, or fourier in a network of the VE family"
    if unet.get("out_channels", 3) not in (channels, 2 * channels):
        return "it needs as many output channels as input channels, or twice as many with a learned variance"
    if unet.get("center_input_sample") and prediction != "ve":
        return "it centres its input (center_input_sample), which is only supported for the VE family"
    return _refused_size(unet)


def _refused_size(unet: Mapping[str, Any]) -> str | None:
    """Return why a network cannot make images of its own size, or why these cannot be distilled, or None."""
    size, blocks = unet.get("sample_size"), unet.get("block_out_channels", [None] * 4)
    sides = [size] if isinstance(size, int) else size if isinstance(size, list | tuple) else []
    if len(sides) not in (1, 2) or not all(isinstance(side, int) and 1 <= side <= LONGEST_SIDE for side in sides):
        return f"sample_size: {size!r}: must be the images' side in pixels, 1 to {LONGEST_SIDE:,}"
    if len({*sides}) != 1:
        return f"sample_size: {size!r}: only square images are supported"
    halvings = len(blocks) - 1 if isinstance(blocks, list | tuple) else 0
    factor, side = 2**halvings, sides[0]
    if side % factor:
        fits = " or ".join(str(each) for each in (side // factor * factor, -(-side // factor) * factor) if each)
        return (
            f"sample_size: {side}: must be divisible by {factor}, as the network halves its images {halvings} times "
            f"(block_out_channels has {len(blocks)} entries); {fits} fits"
        )
    return None


def _check_network(model: ModelFolder) -> None:
    """Raise UserError for another network than a UNet2DModel, and for a configuration that cannot be built."""
    where, named = model.network / "config.json", model.index.get("unet")
    if model.index and (not isinstance(named, list) or not {*map(str, named[-1:])} & {*NETWORKS}):
        raise UserError(model.path, None, "holds no UNet2DModel by its model_index.json, which the network must be")
    if not model.unet:
        raise UserError(where, None, "is empty" if where.is_file() else "no such file")
    if (kind := model.unet.get("_class_name", "UNet2DModel")) not in NETWORKS:
        raise UserError(where, None, f"its network is {kind}, not UNet2DModel")
    if "quantization_config" in model.unet:
        raise UserError(f"{where}: quantization_config", None, "quantised weights are not supported")
    check_numbers(where, model.unet)
    check_old(where, model.unet)
    check_numbers(model.scheduler / "scheduler_config.json", model.noise)


def _check_weights(model: ModelFolder) -> None:
    """Raise UserError for weights that are not there, are no safetensors, or are parts that do not fit their index."""
    if not model.weights:
        for path in model.pickles:
            check_not_pointer(path)
        if model.pickles:
            raise UserError(model.path, None, PICKLED)
        if model.variants:
            names = ", ".join(f"diffusion_pytorch_model.{each}.safetensors" for each in model.variants)
            raise UserError(model.network, None, f"has several variants of its weights ({names}): remove all but one")
        raise UserError(model.path, None, "it has no safetensors weights")
    found = {path.name: tensor_names(path) for path in model.weights}
    if any("-of-" in name for name in found) and found != shards(model.weights_index):
        remedy = "does not name the tensors of the parts that are there: a part is missing, or of another model"
        raise UserError(model.weights_index, None, remedy)


def tensor_names(path: Path) -> set[str]:
    """Return the names of the tensors in a safetensors file; UserError where it is none."""
    with unreadable(path, "is no safetensors file"):
        return set(safetensors_header(path)) - {"__metadata__"}


def check_numbers(where: Path, value: Any, key: str = "") -> None:  # noqa: ANN401 - JSON
    """UserError where a model's configuration has a number, list or text with which building it need not end."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_numbers(where, item, name)
    elif isinstance(value, list):
        most = LONGEST_TABLE if key in ("trained_betas", "custom_timesteps") else LONGEST_LIST
        if len(value) > most:
            raise UserError(f"{where}: {key}", len(value), f"entries are more than {most:,}")
        for item in value:
            check_numbers(where, item, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        most = MOST_LAYERS if key in ("layers_per_block", "num_layers", "transformer_layers_per_block") else LARGEST
        if isinstance(value, int) and abs(value) > most:
            raise UserError(f"{where}: {key}", value, f"is larger than {most:,}")
