"""What each field of a stock configuration means here, as data: schedulers of diffusers by family, and UNet2DModel.

A field is used, or only changes how the stock pipeline samples, or is supported at one value alone. A test holds that
every field of every class in `SCHEDULERS` in the installed diffusers stands in exactly one of the three.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The fields of one family: used, without effect on what the network computes, and fixed at {field: value}."""

    used: frozenset[str]
    sampling: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def check(self, where: object, config: Mapping[str, Any]) -> None:
        """Raise UserError, naming the file `where`, for a fixed field of another value."""
        for key, value in self.fixed.items():
            if config.get(key, value) != value:
                raise UserError(f"{where}: {key}", config[key], f"is not supported; only {value!r} is")

    def unknown(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Yield the fields of a configuration that neither we nor diffusers read."""
        known = self.used | self.sampling | {*self.fixed, *OLD_FIELDS}
        return (key for key in config if key not in known and not key.startswith("_"))


def _fields(used: str, sampling: str = "", **fixed: Any) -> Fields:  # noqa: ANN401 - JSON
    return Fields(used=frozenset(used.split()), sampling=frozenset(sampling.split()), fixed=fixed)


FAMILIES = {
    "ddpm": _fields(
        "num_train_timesteps beta_start beta_end beta_schedule trained_betas rescale_betas_zero_snr prediction_type "
        "clip_sample clip_sample_range thresholding dynamic_thresholding_ratio sample_max_value",
        # variance_type: the channels of a learned variance are known by the network's out_channels. flow_shift,
        # use_dynamic_shifting, time_shift_type and shift_terminal: read only with use_flow_sigmas.
        "variance_type timestep_spacing steps_offset set_alpha_to_one skip_prk_steps solver_order solver_type solver_p "
        "algorithm_type lower_order_final euler_at_final final_sigmas_type lambda_min_clipped predict_x0 "
        "disable_corrector predictor_order corrector_order tau_func interpolation_type sigma_min sigma_max "
        "use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_lu_lambdas noise_sampler_seed "
        "flow_shift use_dynamic_shifting time_shift_type shift_terminal",
        use_flow_sigmas=False,
        timestep_type="discrete",  # continuous: an EDM model under a DDPM's name
    ),
    "edm": _fields(
        "sigma_min sigma_max sigma_data",
        "num_train_timesteps sigma_schedule rho solver_order algorithm_type solver_type lower_order_final "
        "euler_at_final final_sigmas_type dynamic_thresholding_ratio sample_max_value",
        prediction_type="epsilon",  # F of Karras 2022; v_prediction: its negative
        thresholding=False,
    ),
    # The shifts choose the noise levels of a sampling; the network reads num_train_timesteps * t at each all the same.
    "flow_matching": _fields(
        "num_train_timesteps",
        "shift use_dynamic_shifting base_shift max_shift base_image_seq_len max_image_seq_len shift_terminal "
        "use_karras_sigmas use_exponential_sigmas use_beta_sigmas time_shift_type stochastic_sampling",
        invert_sigmas=False,  # true: t = 0 is noise
    ),
    "ve": _fields("sigma_min sigma_max", "num_train_timesteps snr sampling_eps correct_steps"),
}
"""By family, the fields of its schedulers."""

UNET = _fields(
    "sample_size in_channels out_channels center_input_sample time_embedding_type time_embedding_dim freq_shift "
    "flip_sin_to_cos down_block_types mid_block_type up_block_types block_out_channels layers_per_block "
    "mid_block_scale_factor downsample_padding downsample_type upsample_type dropout act_fn attention_head_dim "
    "norm_num_groups attn_norm_num_groups norm_eps resnet_time_scale_shift add_attention num_class_embeds",
    "num_train_timesteps",  # of a learned time embedding, which is not supported
    class_embed_type=None,  # others embed a number, not a class
)
"""Of UNet2DModel: diffusers builds the network by the used ones."""

OLD_FIELDS = {
    "timesteps": "num_train_timesteps",
    "image_size": "sample_size",
    "block_channels": "block_out_channels",
    "num_res_blocks": "layers_per_block",
    "down_blocks": "down_block_types",
    "up_blocks": "up_block_types",
    "downscale_freq_shift": "freq_shift",
    "num_head_channels": "attention_head_dim",
    "resnet_num_groups": "norm_num_groups",
    "resnet_act_fn": "act_fn",
    "resnet_eps": "norm_eps",
    "predict_epsilon": "prediction_type",
}
"""Fields of diffusers before 0.10, which it no longer reads, and what they are called since."""

SCHEDULERS = {
    f"{name}Scheduler": family
    for family, names in {
        "ddpm": "DDIM DDIMInverse DDIMParallel DDPM DDPMParallel DEISMultistep DPMSolverMultistep "
        "DPMSolverMultistepInverse DPMSolverSDE DPMSolverSinglestep EulerAncestralDiscrete EulerDiscrete HeunDiscrete "
        "KDPM2AncestralDiscrete KDPM2Discrete LMSDiscrete PNDM SASolver UniPCMultistep",
        "edm": "EDMEuler EDMDPMSolverMultistep",
        "flow_matching": "FlowMatchEulerDiscrete",
        "ve": "ScoreSdeVe",
        "student": "CMStochasticIterative LCM TCD",
    }.items()
    for name in names.split()
}
"""The family of each scheduler class that is accepted; those of a DDPM differ only in how they sample."""

_K_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
DDPM_DEFAULTS: dict[str, dict[str, Any]] = {
    "HeunDiscreteScheduler": _K_BETAS | {"clip_sample": False},
    "KDPM2DiscreteScheduler": _K_BETAS,
    "KDPM2AncestralDiscreteScheduler": _K_BETAS,
    "DPMSolverSDEScheduler": _K_BETAS,
}
"""Where the default of a class for a used field differs from DDPMScheduler's."""


def check_old(where: object, config: Mapping[str, Any]) -> None:
    """Raise UserError for a field of an old diffusers that stands there in place of today's.

    `predict_epsilon` is read, see `fewstep.teachers.family`.
    """
    for old, new in OLD_FIELDS.items():
        if old in config and new not in config and old != "predict_epsilon":
            raise UserError(f"{where}: {old}", config[old], f"is from an old diffusers and is ignored; name it {new}")
