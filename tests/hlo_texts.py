"""Small programs in HLO text, and meshes of devices that are not there."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np


def entry(lines, before="", header="HloModule m, is_scheduled=true"):
    """Returns a module whose entry holds `lines`, behind the computations of `before`."""
    body = "\n".join(f"  {line}" for line in lines.strip().splitlines())
    return f"{header}\n{before}\nENTRY %main (p: f32[1]) -> f32[1] {{\n{body}\n}}\n"


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
