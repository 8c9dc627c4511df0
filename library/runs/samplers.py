"""The samplers by name. No NumPy, so that ``--help`` is quick; ``sampling.MAKERS`` says what each one computes."""

from collections.abc import Mapping
from types import MappingProxyType

SAMPLERS = (
    "euler",
    "euler_a",
    "ddim",
    "ddpm",
    "pndm",
    "lms",
    "heun",
    "dpm_2",
    "dpm_2_a",
    "dpmsolver",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "dpmpp_2m_sde",
    "dpmpp_2s",
)
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "k_euler": "euler",
        "k_euler_a": "euler_a",
        "k_lms": "lms",
        "k_dpm_2": "dpm_2",
        "k_dpm_2_a": "dpm_2_a",
        "dpmsolver++": "dpmpp_2m",
        "dpmsingle": "dpmpp_2s",
    }
)
"""kohya's names for them (``--sample_sampler``)."""
LEAST_STEPS: Mapping[str, int] = MappingProxyType({"pndm": 4})  # three steps of Runge-Kutta and one that uses them
MOST_STEPS = 1000  # the timesteps that there are
SAMPLER_HELP = f"{', '.join(SAMPLERS)}; kohya's {', '.join(ALIASES)} too"


def find_sampler(name: str, steps: int) -> str:
    """The name in ``SAMPLERS`` of a sampler that is given by name or alias.

    Raises:
        ValueError: there is none, or not with so few or so many steps.
    """
    found = ALIASES.get(name, name)
    if found not in SAMPLERS:
        raise ValueError(f"--scheduler {name}: choose one of {', '.join((*SAMPLERS, *ALIASES))}")
    least = LEAST_STEPS.get(found, 1)
    if steps < least:
        raise ValueError(f"{steps} steps: --scheduler {name} takes at least {least}")
    if steps > MOST_STEPS:
        raise ValueError(f"{steps} steps: --scheduler {name} takes at most {MOST_STEPS}, one for each timestep")
    return found
