"""Stages, weights of sets and repetition: what a mixture gives, and when, is arithmetic."""

import collections
import dataclasses
import logging

import numpy as np
import pytest
from test_loader import (
    TOKENIZER,
    assert_batches_equal,
    host_rows,
    join_hosts,
    make_config,
    make_loader,
    write_set,
)

from ellama_jax.config import StageConfig
from ellama_jax.tokens.loader import Loader, batch_fingerprint, open_sources
from ellama_jax.tokens.mixture import RowOrder, mixture_differences

SWITCH = 30
ANNEAL = {"anneal": StageConfig(start_step=SWITCH, replay_frac=0.2)}


@pytest.fixture(scope="module")
def windows_dir(tmp_path_factory):
    """Four sets of 40 windows of 16, filled 9/16, 16/16, 10/16 and 15/16."""
    path = tmp_path_factory.mktemp("windows")
    for (domain, language), length in {
        ("ecommerce", "de"): 9, ("ecommerce", "en"): 4, ("general", "de"): 10, ("general", "en"): 5,
    }.items():  # fmt: skip
        write_set(path, domain, language, length=length, count=40 * (16 // length))
    return path


def consumed_shares(loader, steps):
    consumed = collections.Counter()
    for batch in loader.iterate(*steps):
        consumed.update(loader.count_tokens(batch))
    total = sum(consumed.values())
    return {name: tokens / total for name, tokens in consumed.items()}


def test_padded_listings_and_full_prose_share_by_tokens_to_half_a_percent(tmp_path):
    """30 % padding against 0.1 %: by rows, e-commerce would have 0.41 of the tokens and not 0.5."""
    for domain, length in {"ecommerce": 717, "general": 1023}.items():
        write_set(tmp_path, domain, "en", length=length, count=900, window_length=1024)
    loader = make_loader(
        tmp_path, seq_len=1024, ecommerce_shares={"en": 1.0}, general_shares={"en": 1.0}
    )
    padding = {s.name: s.windows.manifest.num_padding / (900 * 1024) for s in loader.sources}
    assert padding == pytest.approx({"ecommerce-en": 0.300, "general-en": 0.001}, abs=0.0005)
    shares = consumed_shares(loader, (0, 200))
    assert shares["ecommerce-en"] == pytest.approx(0.5, abs=0.005)


def test_a_stage_switches_the_shares_at_its_step(windows_dir):
    loader = make_loader(windows_dir, stages=ANNEAL, max_epochs=99.0)
    before = consumed_shares(loader, (0, SWITCH))
    after = consumed_shares(loader, (SWITCH, 10 * SWITCH))
    general = ("general-de", "general-en")
    assert sum(before[name] for name in general) == pytest.approx(0.5, abs=0.02)
    assert sum(after[name] for name in general) == pytest.approx(0.2, abs=0.01)


def test_before_a_switch_batches_are_those_without_it(windows_dir):
    plain, staged = make_loader(windows_dir), make_loader(windows_dir, stages=ANNEAL)
    for step in range(SWITCH):
        assert_batches_equal(staged.batch(step), plain.batch(step))
    assert batch_fingerprint(staged.batch(SWITCH)) != batch_fingerprint(plain.batch(SWITCH))


def test_a_switch_re_reads_nothing_and_leaves_nothing_out(windows_dir):
    """The rows of each source over the switch are those it gives by itself, in its order."""
    loader = make_loader(windows_dir, stages=ANNEAL)
    given = collections.defaultdict(list)
    for batch in loader.iterate(0, 2 * SWITCH):
        for source, row in zip(batch["source_ids"], batch["inputs"], strict=True):
            given[int(source)].append(row.tobytes())
    assert len(given) == 4
    for source, rows in given.items():
        name = loader.sources[source].name
        domain, language = name.split("-")
        alone = make_loader(
            windows_dir, global_batch_size=len(rows), replay_frac=float(domain == "general"),
            **{f"{domain}_shares": {language: 1.0}},
        ).batch(0)  # fmt: skip
        assert rows == [row.tobytes() for row in alone["inputs"]], name


@pytest.mark.parametrize("resumed_at", [SWITCH - 1, SWITCH, SWITCH + 1, 7])
@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_resuming_about_a_switch_on_other_hosts_gives_the_same_bytes(
    windows_dir, resumed_at, num_hosts
):
    whole = make_loader(windows_dir, stages=ANNEAL)
    rows_of = [host_rows(host, num_hosts) for host in range(num_hosts)]
    hosts = [
        make_loader(windows_dir, stages=ANNEAL).iterate(resumed_at, SWITCH + 4, rows)
        for rows in rows_of
    ]
    joined = zip(*hosts, strict=True)
    for step, parts in enumerate(joined, start=resumed_at):
        assert_batches_equal(join_hosts(parts, rows_of), whole.batch(step))
    assert step == SWITCH + 3


def test_a_stage_may_bring_and_drop_sources(windows_dir):
    stages = {"late": StageConfig(start_step=10, ecommerce_shares={"en": 1.0}, replay_frac=0.0)}
    loader = make_loader(windows_dir, stages=stages, ecommerce_shares={"de": 1.0})
    names = {s.name: s.token_shares for s in loader.sources}
    assert names["ecommerce-de"] == (0.5, 0.0) and names["ecommerce-en"] == (0.0, 1.0)
    assert "ecommerce-en" not in {k for k, v in consumed_shares(loader, (0, 10)).items() if v}
    assert consumed_shares(loader, (10, 20))["ecommerce-en"] == 1.0


def test_stages_are_taken_in_the_order_of_their_steps(windows_dir):
    late = {"b": StageConfig(20, replay_frac=0.0), "a": StageConfig(40, replay_frac=1.0)}
    loader = make_loader(windows_dir, stages=late)
    assert loader.stages == [("data", 0), ("data.stages.b", 20), ("data.stages.a", 40)]
    other = make_loader(windows_dir, stages=dict(reversed(late.items())))
    assert loader.mixture_fingerprint == other.mixture_fingerprint


def test_what_was_read_so_far_does_not_know_of_later_stages(windows_dir):
    plain, staged = make_loader(windows_dir), make_loader(windows_dir, stages=ANNEAL)
    assert staged.mixture_fingerprint != plain.mixture_fingerprint
    for step in (1, SWITCH):
        assert staged.fingerprint_until(step) == plain.fingerprint_until(step)
    assert staged.fingerprint_until(SWITCH + 1) != plain.fingerprint_until(SWITCH + 1)
    assert staged.fingerprint_until(SWITCH + 1) == staged.mixture_fingerprint
    said = mixture_differences(plain.mixture_until(SWITCH + 1), staged.mixture_until(SWITCH + 1))
    assert "shares_from_step/30/general-en was absent, now 0.18" in said


def test_a_mixture_without_stages_has_the_fingerprint_it_had_before_there_were_any(windows_dir):
    """Pinned: runs of that time resume."""
    import hashlib
    import json

    loader = make_loader(windows_dir)
    parts = [[s.name, s.windows.manifest.content_sha256, s.token_share] for s in loader.sources]
    text = json.dumps([parts, [1, 16, 8]])  # seed, seq_len, global_batch_size
    assert loader.mixture_fingerprint == hashlib.sha256(text.encode()).hexdigest()


def test_rows_before_counts_what_locate_gives():
    order = RowOrder([0, 13, 40], [[0.7, 0.3, 0.0], [0.0, 0.5, 0.5], [0.1, 0.1, 0.8]])
    counts = [0, 0, 0]
    for row in range(200):
        assert order.rows_before(row) == counts
        source, index = order.locate(row)
        assert index == counts[source]
        counts[source] += 1


def test_exact_far_along_a_trillion_tokens():
    order = RowOrder([0, 10**9], [[1 / 3, 2 / 3], [0.5, 0.5]])
    assert order.rows_before(10**9) == [333333333, 666666667]
    assert order.rows_before(10**9 + 10**12) == [500333333333, 500666666667]
    assert order.locate(10**12)[1] + 1 in order.rows_before(10**12 + 1)


# --- weights of sets -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_shops(tmp_path_factory):
    path = tmp_path_factory.mktemp("shops")
    write_set(path, "ecommerce", "de", "shop", length=8, count=30)
    write_set(path, "ecommerce", "de", "reviews", length=4, count=20)
    return path


def shop_shares(two_shops, **weights):
    named = {f"ecommerce-de-{name}": weight for name, weight in weights.items()}
    config = make_config(
        two_shops, replay_frac=0.0, ecommerce_shares={"de": 1.0}, source_weights=named
    )
    return {source.name: source.token_share for source in open_sources(config, None)}


def test_weights_divide_the_share_of_a_language_among_its_sets(two_shops):
    shares = shop_shares(two_shops, shop=1.0, reviews=3.0)
    assert shares == {"ecommerce-de-reviews": 0.75, "ecommerce-de-shop": 0.25}
    assert shop_shares(two_shops, shop=2.0, reviews=0.0) == {"ecommerce-de-shop": 1.0}


def test_a_stage_may_have_weights_of_its_own(two_shops):
    weights = {"ecommerce-de-shop": 1.0, "ecommerce-de-reviews": 1.0}
    stage = {"late": StageConfig(5, source_weights=weights)}
    config = make_config(two_shops, replay_frac=0.0, ecommerce_shares={"de": 1.0}, stages=stage)
    assert {s.name: s.token_shares for s in open_sources(config, None)} == {
        "ecommerce-de-reviews": (0.25, 0.5),
        "ecommerce-de-shop": (0.75, 0.5),
    }


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"shop": 1.0}, "must name every set .* or none, got ecommerce-de-shop without ecommerce-de-r"),
        ({"shop": 0.0, "reviews": 0.0}, "one of ecommerce-de-reviews, ecommerce-de-shop must be above"),
        ({"shops": 1.0}, r"^data.source_weights.ecommerce-de-shops: is no .* did you mean ecommerce-de-shop\?"),
    ],
)  # fmt: skip
def test_weights_that_cannot_work_are_refused(two_shops, weights, message):
    with pytest.raises(ValueError, match=message):
        shop_shares(two_shops, **weights)


def test_a_stage_without_windows_is_refused_by_its_name(windows_dir):
    stages = {"late": StageConfig(5, general_shares={"fr": 1.0})}
    message = r"^data.stages.late.general_shares: fr has 50.0% .* must hold a window set general-fr"
    with pytest.raises(ValueError, match=message):
        make_loader(windows_dir, stages=stages)


# --- repetition ----------------------------------------------------------------------------------


def test_epochs_are_the_rows_read_by_the_rows_there_are(windows_dir):
    loader = make_loader(windows_dir, stages=ANNEAL)
    for step in (0, 11, SWITCH, 50):
        ids = [loader.batch(before)["source_ids"] for before in range(step)]
        counts = np.bincount(np.concatenate([*ids, np.array([], int)]).astype(int), minlength=4)
        assert list(loader.epochs(step).values()) == (counts / 40).tolist()


def test_more_epochs_than_allowed_are_refused_with_the_figures(windows_dir):
    loader = make_loader(windows_dir)
    loader.check_repetition(40)
    with pytest.raises(ValueError) as refused:
        loader.check_repetition(50)
    said = str(refused.value)
    assert said.startswith(
        "data.max_epochs: no set may be read more often in 50 steps, got ecommer"
    )
    assert (
        "ecommerce-de 4.92 times where 4 is allowed (360 tokens on disk, 1,773 asked for)" in said
    )
    assert "general-en" not in said and "prepare more text" in said and "on_repetition=warn" in said


def test_a_source_may_have_a_cap_of_its_own(windows_dir):
    caps = {"ecommerce-de": 5.0}
    make_loader(windows_dir, max_epochs_by_source=caps).check_repetition(50)
    with pytest.raises(ValueError, match="general-en 1.07 times where 1 is allowed"):
        make_loader(windows_dir, max_epochs_by_source={"general-en": 1.0}).check_repetition(15)
    message = r"^data.max_epochs_by_source.ecommerce-dee: .* did you mean ecommerce-de\?"
    with pytest.raises(ValueError, match=message):
        make_loader(windows_dir, max_epochs_by_source={"ecommerce-dee": 1.0}).check_repetition(1)


def test_repetition_may_be_a_warning_and_is_never_silent(windows_dir, caplog):
    loader = make_loader(windows_dir, on_repetition="warn")
    with caplog.at_level(logging.WARNING):
        loader.check_repetition(50)
    assert "ecommerce-de 4.92 times where 4 is allowed" in caplog.text


def test_stages_count_in_the_epochs(windows_dir):
    """What would be read five times is read less when a stage turns to other sources."""
    stages = {"general": StageConfig(20, replay_frac=1.0, general_shares={"en": 1.0})}
    config = dataclasses.replace(
        make_config(windows_dir), stages=stages, max_epochs_by_source={"general-en": 99.0}
    )
    loader = Loader(open_sources(config, TOKENIZER.fingerprint), config)
    loader.check_repetition(50)
    assert loader.epochs(50)["ecommerce-de"] == loader.epochs(20)["ecommerce-de"] < 4


def test_a_run_is_described_with_its_epochs_and_switches(windows_dir):
    lines = list(make_loader(windows_dir, stages=ANNEAL).describe(40))
    assert lines[0].startswith(" 37.5% ecommerce-de: 360 tokens on disk, read ")
    assert lines[-1] == (
        "after step 30 (data.stages.anneal): 60.0% ecommerce-de, 20.0% ecommerce-en, "
        "2.0% general-de, 18.0% general-en"
    )
