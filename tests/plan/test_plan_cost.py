"""Days, chip-hours and prices."""

import pytest

from ellama_jax.config import load_config
from ellama_jax.plan.cost import (
    check_prices,
    parse_mfu,
    parse_prices,
    parse_write_rate,
    run_cost,
    run_tokens,
)


def config(*overrides):
    given = [f"--config.{override}" for override in overrides]
    return load_config(["--config", "configs/ellama.py", *given], "plan")[0]


def test_a_run_takes_its_steps_times_the_time_of_one():
    steps = config("train.steps=86400")
    cost = run_cost(steps, num_chips=64, step_secs=2.0, price=4.2)
    assert cost["days"] == pytest.approx(2.0)
    assert cost["chip_hours"] == pytest.approx(2 * 24 * 64)
    assert cost["cost_usd"] == pytest.approx(2 * 24 * 64 * 4.2)
    assert run_cost(steps, 64, 2.0, None)["cost_usd"] is None


def test_the_papers_run_has_a_trillion_tokens():
    """e-Llama: about 85k updates of 11.8M tokens."""
    assert run_tokens(config()) == 85000 * 1440 * 8192 == pytest.approx(1.0e12, rel=0.01)


def test_prices_are_for_all_or_by_generation():
    assert parse_prices(None) == {}
    assert set(parse_prices("3.5").values()) == {3.5}
    assert parse_prices("v5p=4.2, v6e=2.7") == {"v5p": 4.2, "v6e": 2.7}


@pytest.mark.parametrize("text", ["-1", "0", "nan", "inf", "cheap", "v5p=", "v5p=-2", "v5p=1,"])
def test_what_is_no_price_is_refused(text):
    with pytest.raises(ValueError, match="--price: must be"):
        parse_prices(text)


def test_a_price_of_no_generation_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean v5p"):
        parse_prices("v5pp=1")


@pytest.mark.parametrize(
    ("text", "keys", "got"),
    [("v5p=4", ["v6e"], "v6e, got v5p"), ("v5p=4,v6e=3", ["v6e"], "v6e, got v5p, v6e"), ("v6e=3", ["v6e", "v4"], "v4, v6e, got v6e")],
)  # fmt: skip
def test_prices_of_other_generations_than_those_planned_are_refused(text, keys, got):
    with pytest.raises(
        ValueError, match=f"--price: must be of the generations of --topology, {got}"
    ):
        check_prices(parse_prices(text), text, keys)


def test_prices_of_what_is_planned_are_taken():
    for text in ("v6e=3", "3", None):
        check_prices(parse_prices(text), text, ["v6e", "v6e"])


@pytest.mark.parametrize("text", ["0", "-0.1", "1.01", "40", "nan", "high"])
def test_an_mfu_is_a_share(text):
    assert parse_mfu(None) is None and parse_mfu("0.4") == 0.4 and parse_mfu("1") == 1
    with pytest.raises(ValueError, match="--mfu: must lie in"):
        parse_mfu(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "fast"])
def test_a_rate_of_writing_is_positive(text):
    assert parse_write_rate("0.5") == 0.5
    with pytest.raises(ValueError, match="--write-rate: must be"):
        parse_write_rate(text)
