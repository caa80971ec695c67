"""What follows from the conversion gate: who is warned, what is refused, what is handed on.

Owns the reading of meta's `verification`; the gate itself is verify.py's.
"""

import sys

from ellama_jax.core.distributed import leads
from ellama_jax.weights.layout import CheckpointInfo


def verification_state(meta: dict) -> str:
    """Returns what the conversion gate said: passed, failed, "not needed" (random weights) or never.

    >>> verification_state({"verification": None})
    'never'
    """
    return (meta["verification"] or {}).get("status", "never")


def check_verified(info: CheckpointInfo, *, allow_unverified: bool) -> None:
    """Warns of a checkpoint that was never verified and refuses one that failed.

    Args:
        info: what is to be trained, merged or exported.
        allow_unverified: let a failed one through, with a warning.

    Raises:
        ValueError: if it failed and is not let through.
    """
    name, state = f"checkpoint {info.path}", verification_state(info.meta)
    if state == "never":
        _warn(
            f"{name}: was never verified against its source; run `ellama verify {info.path} SRC`."
        )
    elif state == "failed" and allow_unverified:
        _warn(f"{name}: failed the conversion gate and is used all the same.")
    elif state == "failed":
        why = info.meta["verification"].get("summary", "no reason is recorded")
        raise ValueError(
            f"{name}: must pass the conversion gate, got: {why}; import it again, or pass "
            "--allow-unverified."
        )


def _warn(message: str) -> None:
    # Printed, not logged: who starts the work must read it, whatever becomes of the log.
    if leads():
        print(f"warning: {message}", file=sys.stderr, flush=True)


def inherit_verification(*bases: CheckpointInfo) -> dict | None:
    """Returns the verification of what is made from `bases`: the worst that one of them has.

    One base hands its own on, with `inherited_from`; several are summed up in a status. Made from
    nothing is made from random weights.
    """
    if not bases:
        return {"status": "not needed", "summary": "random weights have no source"}
    if len(bases) == 1:
        found = bases[0].meta["verification"]
        return found and {"inherited_from": str(bases[0].path), **found}
    states = {str(info.path): verification_state(info.meta) for info in bases}
    worst = next(s for s in ("failed", "never", "passed", "not needed") if s in states.values())
    if worst == "never":
        return None
    summary = "; ".join(f"{path}: {state}" for path, state in states.items())
    return {"status": worst, "summary": summary, "inherited_from": list(states)}
