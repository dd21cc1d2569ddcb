"""A fresh network is a function of its seed."""

from collections.abc import Callable

import torch
from diffusers import UNet2DModel

from fewstep.teachers.network import build_scheduler, build_unet


def test_weights_come_from_the_seed_and_leave_the_global_generator_alone(tiny_unet: Callable[..., UNet2DModel]):
    state = torch.get_rng_state()
    first, again, other = tiny_unet(seed=1), tiny_unet(seed=1), tiny_unet(seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    for one, two in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first.conv_in.weight, other.conv_in.weight)


def test_attention_is_given_from_the_finest_level():
    unet = build_unet(
        (3, 16, 16),
        channels=(8, 16),
        layers_per_block=1,
        attention=(False, True),
        norm_groups=4,
        dropout=0.25,
        seed=0,
    )
    assert list(unet.config["down_block_types"]) == ["DownBlock2D", "AttnDownBlock2D"]
    assert list(unet.config["up_block_types"]) == ["AttnUpBlock2D", "UpBlock2D"]
    assert (unet.config["in_channels"], unet.config["out_channels"], unet.config["sample_size"]) == (3, 3, 16)
    assert unet.config["time_embedding_type"] == "positional"
    assert {module.p for module in unet.modules() if isinstance(module, torch.nn.Dropout)} >= {0.25}
    assert unet(torch.zeros(2, 3, 16, 16), torch.tensor([0, 999])).sample.shape == (2, 3, 16, 16)


def test_scheduler_says_what_was_asked():
    scheduler = build_scheduler(500, "squaredcos_cap_v2", "v_prediction")
    assert scheduler.config["num_train_timesteps"] == len(scheduler.alphas_cumprod) == 500
    assert scheduler.config["prediction_type"] == "v_prediction"
    assert scheduler.config["beta_schedule"] == "squaredcos_cap_v2"
    assert scheduler.config["clip_sample"] is True
