"""What a traced function would compute, looked at without compiling it."""

import jax


def arrays_in(jaxpr, inside=None):
    """Yields shape and dtype of each result of each equation, those of inner jaxprs too.

    Args:
        jaxpr: from `jax.make_jaxpr`.
        inside: the name of a primitive; results outside of it are left out.
    """
    for eqn in jaxpr.eqns:
        if inside is None:
            yield from (var.aval for var in eqn.outvars)
        within = None if eqn.primitive.name == inside else inside
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from arrays_in(value, within)


def _is_jaxpr(value):
    return hasattr(value, "eqns")
