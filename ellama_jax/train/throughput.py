"""How fast a run is, and what part of its devices' peak that is.

Owns the rates of a record and how they are explained. Peaks are core/topology.py's, the FLOPs of a token
model/flops.py's.
"""

from jax.sharding import Mesh

from ellama_jax.core.topology import hardware_of
from ellama_jax.model.flops import FORMULA, model_flops
from ellama_jax.model.presets import LlamaConfig


class Throughput:
    """Rates of a run on one mesh.

    MFU is a fraction of the peak of all devices: positions a second x FLOPs of a position / peak.
    Every position that is computed counts, padding too, but nothing that is computed twice. A
    device whose peak nobody published has none.
    """

    def __init__(self, model: LlamaConfig, seq_len: int, mesh: Mesh):
        """Looks the devices of `mesh` up."""
        self._kind = mesh.devices.flat[0].device_kind
        self._hardware = hardware_of(self._kind)
        per_chip = self._hardware.devices_per_chip if self._hardware else 1
        self._chips = max(1, mesh.size // per_chip)
        self._flops = model_flops(model, seq_len).total_per_token

    def rates(self, tokens: float, positions: int, secs: float) -> dict[str, float]:
        """Returns `tokens_per_sec_per_chip`, and `mfu` where the peak is known.

        Args:
            tokens: predicted in the step.
            positions: rows x seq_len of the step.
            secs: of the step.
        """
        found = {"tokens_per_sec_per_chip": tokens / secs / self._chips}
        if self._hardware is not None:
            peak = self._hardware.flops_per_sec * self._chips
            found["mfu"] = positions * self._flops / secs / peak
        return found

    def describe(self) -> list[str]:
        """Says how MFU is computed, or why it is not."""
        lines = [f"model FLOPs a token: {self._flops:.4g}, {FORMULA}"]
        if self._hardware is None:
            lines.append(f"no MFU: the peak of a device of kind {self._kind} is not known")
        else:
            lines.append(
                "mfu = positions a second x model FLOPs / peak, padding included; peak "
                f"{self._hardware.flops_per_sec / 1e12:g} TFLOP/s in bfloat16 a chip "
                f"({self._hardware.name}) x {self._chips}"
            )
        return lines
