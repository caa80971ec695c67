"""From the time of a step to days, chip-hours and money for a whole run.

Owns this arithmetic and the prices a user gives. How long a step takes at least is plan/roofline.py's.
"""

import difflib
import math
from collections.abc import Collection, Mapping

from ellama_jax.config import RunConfig, count_rows
from ellama_jax.core.topology import GENERATIONS

_PRICED = (*GENERATIONS, "gpu", "cpu")


def parse_prices(text: str | None) -> dict[str, float]:
    """Reads US dollars a chip and hour: one for all, or by generation.

    Raises:
        ValueError: for what is no number above 0 or no generation.

    >>> parse_prices("v5p=4.2,v6e=2.7")["v6e"], parse_prices("3")["v4"]
    (2.7, 3.0)
    """
    if text is None:
        return {}
    if "=" not in text:
        return dict.fromkeys(_PRICED, _parse_price(text, text))
    prices = {}
    for part in text.split(","):
        name, _, price = (piece.strip() for piece in part.partition("="))
        if name not in _PRICED:
            near = difflib.get_close_matches(name, _PRICED, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(_PRICED)}."
            raise ValueError(f"--price: must be for a generation, got {name or part!r}; {hint}")
        prices[name] = _parse_price(price, part)
    return prices


def check_prices(prices: Mapping[str, float], text: str | None, keys: Collection[str]) -> None:
    """Raises a ValueError where prices by generation are not those of the slices that are planned.

    Args:
        prices: as `parse_prices` gives them.
        text: of --price.
        keys: `Target.price_key` of the slices.
    """
    if text is None or "=" not in text:
        return
    wanted, given = ", ".join(sorted(set(keys))), ", ".join(sorted(prices))
    if set(prices) != set(keys):
        raise ValueError(
            f"--price: must be of the generations of --topology, {wanted}, got {given}; give {wanted} a "
            "price, or one number for all."
        )


def _parse_price(text: str, whole: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 < price < math.inf:
        raise ValueError(
            "--price: must be US dollars a chip and hour, as 4.2 or v5p=4.2,v6e=2.7, "
            f"got {whole.strip()}."
        )
    return price


def parse_mfu(text: str | None) -> float | None:
    """Reads an assumed MFU; raises ValueError unless it lies in (0, 1]."""
    if text is None:
        return None
    try:
        mfu = float(text)
    except ValueError:
        mfu = math.nan
    if not 0 < mfu <= 1:
        raise ValueError(f"--mfu: must lie in (0, 1], as 0.4, got {text}.")
    return mfu


def parse_write_rate(text: str) -> float:
    """Reads what a host writes, GB a second; raises ValueError unless it is positive."""
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError(f"--write-rate: must be GB a second and host, as 1, got {text}.")
    return rate


def save_cost(num_bytes: int, num_hosts: int, write_rate: float) -> dict:
    """Returns what a checkpoint's write takes: every host writes its share, all at one time.

    Orbax divides what several devices hold among them, so hosts write alike, replicas too. Training
    goes on meanwhile, but for the copy from devices to hosts.

    Args:
        num_bytes: of parameters and optimizer state.
        write_rate: GB a second and host.

    Returns:
        `bytes`, `hosts`, `bytes_per_host`, `write_rate` and `secs`.

    >>> save_cost(96_000_000_000, 32, 1.0)["secs"]
    3.0
    """
    share = num_bytes / num_hosts
    return {
        "bytes": num_bytes, "hosts": num_hosts, "bytes_per_host": share,
        "write_rate": write_rate, "secs": share / (write_rate * 1e9),
    }  # fmt: skip


def run_cost(config: RunConfig, num_chips: int, step_secs: float, price: float | None) -> dict:
    """Returns what all steps take if each full batch takes `step_secs`, nothing else counted.

    Smaller batches at the beginning take their share of it.

    Returns:
        `days`, `chip_hours`, and `cost_usd`, None without a price.
    """
    secs = run_tokens(config) / tokens_per_step(config) * step_secs
    chip_hours = secs / 3600 * num_chips
    return {
        "days": secs / 86400,
        "chip_hours": chip_hours,
        "cost_usd": None if price is None else chip_hours * price,
    }


def tokens_per_step(config: RunConfig) -> int:
    """Returns the tokens of one step of the full batch, padding included."""
    return config.data.global_batch_size * config.data.seq_len


def run_tokens(config: RunConfig) -> int:
    """Returns the tokens of all steps, those of a smaller batch at the beginning included."""
    return count_rows(config.data, config.train.steps) * config.data.seq_len
