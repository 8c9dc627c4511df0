"""The samplers by name, and which of mindone's schedulers each one is. No MindSpore, so that ``--help`` is quick."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Sampler:
    """One of mindone's schedulers with its settings; the noise schedule is SDXL's in all of them."""

    scheduler: str
    """Class in ``mindone.diffusers``."""
    settings: Mapping[str, object] = field(default_factory=dict)
    adds_noise: bool = False
    """Draws noise at each step, from the picture's seed."""
    least_steps: int = 1


SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "euler": Sampler("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
        "euler_a": Sampler("EulerAncestralDiscreteScheduler", {"timestep_spacing": "linspace"}, adds_noise=True),
        # As in SDXL's own configuration: no clipping of the latents, the last step ends at timestep 0's noise level.
        "ddim": Sampler("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
        "pndm": Sampler("PNDMScheduler", {"set_alpha_to_one": False, "steps_offset": 1}, least_steps=4),
        "lms": Sampler("LMSDiscreteScheduler"),
        "heun": Sampler("HeunDiscreteScheduler"),
        "dpm_2_a": Sampler("KDPM2AncestralDiscreteScheduler", adds_noise=True),
        "dpmpp_2m": Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
        "dpmpp_2m_karras": Sampler("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        "dpmpp_2m_sde": Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, adds_noise=True),
        "dpmpp_2s": Sampler("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    }
)
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "k_euler": "euler",
        "k_euler_a": "euler_a",
        "k_lms": "lms",
        "k_dpm_2_a": "dpm_2_a",
        "dpmsolver++": "dpmpp_2m",
        "dpmsingle": "dpmpp_2s",
    }
)
"""kohya's names for them (``--sample_sampler``)."""
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "dpm_2": "mindone's KDPM2DiscreteScheduler turns into NaN at its last step; dpm_2_a and heun are near",
        "k_dpm_2": "mindone's KDPM2DiscreteScheduler turns into NaN at its last step; dpm_2_a and heun are near",
        "dpmsolver": "replaced upstream by dpmsolver++",
        "ddpm": "mindone's DDPMScheduler does not run on a CPU; euler_a is near",
    }
)
"""kohya's names that are not served, and why."""
SAMPLER_HELP = f"{', '.join(SAMPLERS)}; kohya's {', '.join(ALIASES)} too; not {', '.join(_REFUSED)}"


def find_sampler(name: str, steps: int) -> Sampler:
    """The sampler of that name or alias.

    Raises:
        ValueError: there is none, and why where kohya has one; or it needs more steps.
    """
    if name in _REFUSED:
        raise ValueError(f"--scheduler {name} is not served: {_REFUSED[name]}. Choose one of {', '.join(SAMPLERS)}")
    name = ALIASES.get(name, name)
    if name not in SAMPLERS:
        raise ValueError(f"--scheduler {name}: choose one of {', '.join((*SAMPLERS, *ALIASES))}")
    sampler = SAMPLERS[name]
    if steps < sampler.least_steps:
        raise ValueError(f"{steps} steps: --scheduler {name} takes at least {sampler.least_steps}")
    return sampler
