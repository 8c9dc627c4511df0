"""All in which devices differ: one frozen record, with a row for a CPU and one for Ascend.

``setup.init_device`` chooses the row; whoever computes is given it in a ``Device``. What the CPU's entries gain is
measured in docs/log/performance.md.
"""

from dataclasses import dataclass

import mindspore as ms


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """How this device wants things done."""

    name: str
    """As ``--device`` has it."""
    is_host: bool
    """Tensors lie in the host's memory: NumPy computes on them in place, and calls are over when they return."""
    half_precision: bool
    """Has kernels for float16 and bfloat16."""
    fused_attention: bool
    """Has fused attention; it needs half precision."""
    max_scores: int
    """Attention scores that are computed at once. A CPU takes so few that its caches hold them."""
    max_activation: int
    """Values of an image's activations that the VAE works on at once; larger ones are cut into strips of rows. A CPU
    takes so few that its caches hold them. An NPU wants few large launches: 1024 px of SDXL are whole there, 1 GB in
    float32."""
    explicit_broadcast: bool
    """Repeat columns by a product with ones: MindSpore's CPU kernels broadcast through an index table of 16 bytes per
    value, which they keep for good, and take three times as long."""
    gather_heads: bool
    """Bring attention heads into their place by gathering rows: MindSpore's CPU kernel for a transposition keeps a
    table of 8 bytes per value for good."""
    own_conv_gradient: bool
    """Form large gradients of convolutions' inputs out of other operations: MindSpore's CPU kernel for them keeps the
    memory of its columns for good, and adds them up on one thread."""
    relabel_halves: bool
    """Turn what a graph returns in half precision into halves once more: MindSpore's CPU graphs compute most operations
    on halves in float32 and return its numbers labelled as halves, which other operations then refuse."""
    place_threads: bool
    """Give each of MindSpore's worker threads a core of its own (``cores``)."""


CPU = DeviceProfile(
    name="CPU",
    is_host=True,
    half_precision=False,
    fused_attention=False,
    max_scores=1 << 22,
    max_activation=1 << 20,
    explicit_broadcast=True,
    gather_heads=True,
    own_conv_gradient=True,
    relabel_halves=True,
    place_threads=True,
)
ASCEND = DeviceProfile(
    name="Ascend",
    is_host=False,
    half_precision=True,
    fused_attention=True,
    max_scores=1 << 24,
    max_activation=1 << 28,
    explicit_broadcast=False,
    gather_heads=False,
    own_conv_gradient=False,
    relabel_halves=False,
    place_threads=False,
)
PROFILES = (CPU, ASCEND)


@dataclass(frozen=True)
class Device:
    """How a run computes."""

    profile: DeviceProfile
    dtype: ms.Type = ms.float32
    """Type of the frozen weights and of what flows between blocks."""
    compiled: bool = True
    """Compile blocks to graphs; False runs operation by operation, for debugging."""

    @property
    def value_bytes(self) -> int:
        """Bytes of a value of that type."""
        return 4 if self.dtype == ms.float32 else 2
