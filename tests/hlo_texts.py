"""Small programs from HLO text, and meshes of devices that are not there."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jaxlib import _hlo


def entry(lines, before="", header="HloModule m, is_scheduled=true"):
    """Returns a module whose entry holds `lines`, behind the computations of `before`, serialized."""
    body = "\n".join(f"  {line}" for line in lines.strip().splitlines())
    text = f"{header}\n{_ADD}{before}\nENTRY %main {{\n{body}\n}}\n"
    return _hlo.hlo_module_from_text(text).as_serialized_hlo_module_proto()


_ADD = """%add (add_x: f32[], add_y: f32[]) -> f32[] {
  %add_x = f32[] parameter(0)
  %add_y = f32[] parameter(1)
  ROOT %added = f32[] add(%add_x, %add_y)
}
"""


def fake_mesh(slices=1, **sizes):
    """A mesh whose devices only know their slice, which divides the first axis."""
    count = int(np.prod(list(sizes.values())))
    devices = np.array(
        [SimpleNamespace(slice_index=place * slices // count) for place in range(count)],
        dtype=object,
    ).reshape(list(sizes.values()))
    return SimpleNamespace(devices=devices, axis_names=tuple(sizes), size=count)


def compiled(function, *shapes):
    """Compiles a function of float32 arrays for one CPU device."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arrays).compile()
