"""A batch that grows with the step: still a pure function of the step, on any number of hosts."""

import collections

import numpy as np
import pytest
from test_loader import (
    assert_batches_equal,
    host_rows,
    join_hosts,
    make_config,
    make_loader,
    write_set,
)

from ellama_jax.config import StageConfig, batch_sizes, count_rows, rows_at
from ellama_jax.tokens.mixture import mixture_differences

RAMP = {"5": 2, "11": 4}  # 2 rows in steps 0 to 4, 4 in 5 to 10, then 8
SIZES = [2] * 5 + [4] * 6 + [8] * 9


@pytest.fixture(scope="module")
def windows_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("windows")
    for (domain, language), length in {
        ("ecommerce", "de"): 9, ("ecommerce", "en"): 4, ("general", "de"): 10, ("general", "en"): 5,
    }.items():  # fmt: skip
        write_set(path, domain, language, length=length, count=40 * (16 // length))
    return path


def flat_rows(batches, name="inputs"):
    return np.concatenate([batch[name] for batch in batches])


def test_sizes_and_their_sums_by_hand():
    config = make_config("w", batch_ramp=RAMP)
    assert batch_sizes(config) == [(0, 2), (5, 4), (11, 8)]
    assert [rows_at(config, step) for step in range(20)] == SIZES
    assert [count_rows(config, steps) for steps in range(21)] == [sum(SIZES[:n]) for n in range(21)]
    assert count_rows(make_config("w"), 7) == 56


def test_steps_are_ordered_as_numbers():
    config = make_config("w", batch_ramp={"11": 4, "5": 2})
    assert batch_sizes(config) == [(0, 2), (5, 4), (11, 8)]


def test_a_ramp_cuts_the_same_rows_into_other_batches(windows_dir):
    """The rows of a mixture follow one another whatever the batches: none twice, none left out."""
    ramped, plain = make_loader(windows_dir, batch_ramp=RAMP), make_loader(windows_dir)
    batches = list(ramped.iterate(0, 20))
    assert [len(batch["source_ids"]) for batch in batches] == SIZES
    rows = flat_rows(batches)
    expected = flat_rows([plain.batch(step) for step in range(len(rows) // 8 + 1)])
    np.testing.assert_array_equal(rows, expected[: len(rows)])


@pytest.mark.parametrize("resumed_at", [4, 5, 6, 11])
@pytest.mark.parametrize("num_hosts", [1, 2])
def test_resuming_within_a_ramp_on_other_hosts_gives_the_same_bytes(
    windows_dir, resumed_at, num_hosts
):
    whole = list(make_loader(windows_dir, batch_ramp=RAMP).iterate(0, 13))
    rows_of = [host_rows(host, num_hosts) for host in range(num_hosts)]
    hosts = [
        make_loader(windows_dir, batch_ramp=RAMP).iterate(resumed_at, 13, rows) for rows in rows_of
    ]
    for step, parts in enumerate(zip(*hosts, strict=True), start=resumed_at):
        assert_batches_equal(join_hosts(parts, rows_of), whole[step])
    assert step == 12


def test_rows_are_asked_for_every_size_before_any_is_read(windows_dir):
    def rows_of(size):
        if size == 2:
            raise ValueError("no such mesh")
        return range(size)

    with pytest.raises(ValueError, match="no such mesh"):
        make_loader(windows_dir, batch_ramp=RAMP).iterate(12, 20, rows_of)


def test_a_stage_begins_at_its_step_whatever_the_sizes_before(windows_dir):
    stages = {"late": StageConfig(start_step=8, replay_frac=0.0)}
    loader = make_loader(windows_dir, batch_ramp=RAMP, stages=stages)
    names = [source.name for source in loader.sources]
    general = {index for index, name in enumerate(names) if name.startswith("general")}
    assert general & set(loader.batch(7)["source_ids"].tolist())
    later = flat_rows([loader.batch(step) for step in range(8, 14)], "source_ids")
    assert not general & set(later.tolist())


def test_epochs_and_repetition_count_the_rows_that_were_read(windows_dir):
    loader = make_loader(windows_dir, batch_ramp=RAMP)
    counts = collections.Counter()
    for batch in loader.iterate(0, 15):
        counts.update(loader.sources[int(i)].name for i in batch["source_ids"])
    assert loader.epochs(15) == {s.name: counts[s.name] / 40 for s in loader.sources}
    small = {"49": 2}
    with pytest.raises(ValueError, match="more often in 50 steps"):
        make_loader(windows_dir).check_repetition(50)
    make_loader(windows_dir, batch_ramp=small).check_repetition(50)


def test_what_was_read_so_far_does_not_know_of_later_sizes(windows_dir):
    plain = make_loader(windows_dir, global_batch_size=2)
    ramped = make_loader(windows_dir, batch_ramp=RAMP)
    assert ramped.mixture_fingerprint != plain.mixture_fingerprint
    for step in (1, 5):
        assert ramped.fingerprint_until(step) == plain.fingerprint_until(step)
    assert ramped.fingerprint_until(6) != plain.fingerprint_until(6)
    assert ramped.fingerprint_until(12) == ramped.mixture_fingerprint
    said = mixture_differences(plain.mixture_until(6), ramped.mixture_until(6))
    assert said == ["rows_from_step/5 was absent, now 4"]


def test_a_ramp_is_described(windows_dir):
    lines = list(make_loader(windows_dir, batch_ramp=RAMP).describe(20))
    assert "rows a batch: 2 from step 0, 4 from step 5, 8 from step 11" in lines


def test_inspect_says_how_the_batch_grows_and_counts_its_tokens(windows_dir):
    from ellama_jax.report.audit_text import batch_words
    from ellama_jax.tokens.audit import measure_mixture

    mixture = {"batch_ramp": {"11": 4, "5": 2}, "global_batch_size": 8}
    assert batch_words(mixture) == "2 then 4 then 8"
    config = make_config(windows_dir, batch_ramp=RAMP)
    loader = make_loader(windows_dir, batch_ramp=RAMP)
    assert measure_mixture(loader, config, 20)["tokens"] == sum(SIZES) * 16
