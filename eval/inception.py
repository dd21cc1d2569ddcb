"""torch-fidelity's InceptionV3 with weights that we have read and checked ourselves."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, BasicConv2d, FeatureExtractorInceptionV3

from fewstep.errors import UserError
from fewstep.eval.cancel import stop_if_cancelled

KEY = "eval.inception_weights"
CPU_BATCH = 8  # larger batches leave the cache: 6.2 images/s at 100 against 9.5 at 8 (two cores, AMD EPYC)


def inception_weights(path: Path | None) -> Path:
    """The weights file: the user's, or torch-fidelity's, fetched into torch's hub folder if not there.

    UserError: the user's file is missing; the download failed (which file, where it is looked for, and how
    to supply it).
    """
    if path is not None:
        if not Path(path).is_file():
            raise UserError(KEY, str(path), "no such file; give InceptionV3 weights as .safetensors or .pth")
        return Path(path)
    name = URL_INCEPTION_V3.rsplit("/", 1)[1]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not cached.is_file():
        _download(cached)
    return cached


def _download(target: Path) -> None:
    """Fetch torch-fidelity's weights; the digits before .pth are the start of the file's sha256."""
    prefix = target.stem.rsplit("-", 1)[1]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(target), hash_prefix=prefix)
    except (OSError, RuntimeError) as error:
        remedy = (
            f"Inception's weights {target.name} are not in {target.parent} and could not be fetched from "
            f"{URL_INCEPTION_V3} ({error}); fetch them elsewhere and pass --{KEY} PATH"
        )
        raise UserError(KEY, None, remedy) from None


def read_inception_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, names and shapes checked; UserError names what is wrong with it."""
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            # The one place that opens a pickle of a user's: weights_only reads tensors and runs no code.
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(KEY, str(path), f"cannot be read as safetensors or as a .pth of tensors ({reason})") from None
    _check_names(path, tensors)
    return tensors


def _check_names(path: Path, tensors: object) -> None:
    expected = _expected_shapes()
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(KEY, str(path), "does not hold a dictionary of named tensors")
    wrong = [name for name in expected if name not in tensors or tuple(tensors[name].shape) != expected[name]]
    wrong += [name for name in tensors if name not in expected]
    if wrong:
        faults = f"{len(wrong)} tensors are missing, unknown or of another shape, the first is {wrong[0]!r}"
        raise UserError(KEY, str(path), f"is not torch-fidelity's InceptionV3: {faults}")


def _expected_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of torch-fidelity's network: those of torchvision's without auxiliary logits."""
    from torchvision.models import Inception3

    with torch.device("meta"):
        network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def inception_network(tensors: dict[str, Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    """uint8 [N, 3, H, W] on `device` -> pooled features [N, 2048] float32.

    torch-fidelity unpickles what it is given, so it gets a file that we wrote from the checked tensors. Each batch
    norm is folded into its convolution, and on a processor few images at a time pass through channels_last memory:
    features stay equal to 1e-5.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inception.pth"
        torch.save(tensors, path)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    for block in network.modules():
        if isinstance(block, BasicConv2d):
            block.conv = fuse_conv_bn_eval(block.conv, block.bn)
            block.add_module("bn", torch.nn.Identity())
    network = network.to(device).to(memory_format=torch.channels_last)
    network.register_forward_pre_hook(stop_if_cancelled)

    def features(images: Tensor) -> Tensor:
        parts = images.split(CPU_BATCH if device.type == "cpu" else len(images))
        return torch.cat([network(part)[0] for part in parts])

    return features


def inception_logits(tensors: dict[str, Tensor]) -> Callable[[Tensor], Tensor] | None:
    """Pooled features [N, 2048] -> logits [N, 1008] float32 without bias, those of the Inception Score.

    None where the file has zeros in their place: weights cut at the pooling layer.
    """
    weight = tensors["fc.weight"].float()
    return (lambda features: features @ weight.T) if bool(weight.any()) else None
