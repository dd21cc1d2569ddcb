"""torch-fidelity's InceptionV3 with weights that we have read and checked ourselves."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, BasicConv2d, FeatureExtractorInceptionV3
from torchvision.models import Inception3

from fewstep.eval.cancel import stop_if_cancelled
from fewstep.eval.features.extractors import OpenNetwork
from fewstep.eval.features.weights_file import PublishedWeights

WEIGHTS = PublishedWeights(
    network="torch-fidelity's InceptionV3",
    owner="Inception",
    url=URL_INCEPTION_V3,
    sha256=URL_INCEPTION_V3.rsplit("-", 1)[1].removesuffix(".pth"),
)


def read_weights(path: Path | None) -> dict[str, Tensor]:
    """The tensors of a weights file, the user's or torch-fidelity's download; UserError names what is wrong with it.

    torch-fidelity's network has the names and shapes of torchvision's without auxiliary logits.
    """
    with torch.device("meta"):
        network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    return WEIGHTS.read(path, network)


def open_network(tensors: dict[str, Tensor], device: torch.device) -> OpenNetwork:
    """Its features are the pooled ones [N, 2048]; its logits [N, 1008] are those of the Inception Score, without bias.

    torch-fidelity unpickles what it is given, so it gets a file that we wrote from the checked tensors. Each batch
    norm is folded into its convolution, and memory is channels_last: features stay equal to 1e-5.
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
    reach_pool = {k: v for k, v in tensors.items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")}
    weight = tensors["fc.weight"].float()
    logits = (lambda features: features @ weight.T) if bool(weight.any()) else None  # zeros: cut at the pooling layer
    return OpenNetwork(features=lambda images: network(images)[0], used=reach_pool, logits=logits)
