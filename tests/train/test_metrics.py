"""Records and files of metrics."""

import json

import numpy as np

from ellama_jax.train.metrics import (
    IntervalMeans,
    MetricsLog,
    known_metrics,
    read_metrics,
    step_record,
)
from ellama_jax.train.step import Metrics


def metrics(loss_sums, weights, loss=2.0):
    return Metrics(
        loss=np.float32(loss), grad_norm=np.float32(0.5), learning_rate=np.float32(0.5),
        weight_sum=np.float32(sum(weights)),
        source_loss_sums=np.array(loss_sums, np.float32),
        source_weight_sums=np.array(weights, np.float32),
        source_tokens=np.array(weights, np.int32), skipped=np.int32(1),
        skipped_in_a_row=np.int32(0), spikes=np.int32(2), spiked=np.bool_(False),
    )  # fmt: skip


def test_sources_of_one_domain_and_language_are_one_curve():
    """Their sums are added before dividing: 30 nats over 20 tokens, not the mean of 1 and 2."""
    names = ["ecommerce/de", "general/de", "ecommerce/de"]
    record = step_record(metrics([10, 8, 20], [10, 4, 10]), names, step=3, secs=2.0)
    assert record == {
        "step": 3, "loss": 2.0, "learning_rate": 0.5, "grad_norm": 0.5, "loss_tokens": 24,
        "step_secs": 2.0, "tokens_per_sec": 12.0, "skipped_updates": 1, "spikes": 2, "spiked": 0,
        "loss/ecommerce/de": 1.5, "loss/general/de": 2.0,
    }  # fmt: skip


def test_a_source_without_tokens_has_no_loss():
    record = step_record(metrics([3, 0], [2, 0]), ["a/en", "b/en"], step=1, secs=1)
    assert record["loss/a/en"] == 1.5 and "loss/b/en" not in record


def test_means_over_steps_are_weighted_by_tokens_of_the_source():
    """20 nats over 4 tokens and 10 over 20: 30 / 24, not the mean of 5 and 0.5."""
    means = IntervalMeans(["a/en", "b/en"], {})
    means.add(metrics([20, 2], [4, 1], loss=4.4))
    means.add(metrics([10, 0], [20, 0], loss=0.5))
    assert means.means() == {
        "loss": (np.float32(4.4) * 5 + 0.5 * 20) / 25, "grad_norm": 0.5,
        "loss/a/en": 1.25, "loss/b/en": 2.0,
    }  # fmt: skip


def test_means_go_on_from_what_a_checkpoint_stored():
    whole, first = IntervalMeans(["a/en"], {}), IntervalMeans(["a/en"], {})
    for means in (whole, first):
        means.add(metrics([0.1], [3], loss=0.1))
    second = IntervalMeans(["a/en"], json.loads(json.dumps(first.sums)))
    for means in (whole, second):
        means.add(metrics([0.7], [3], loss=0.7))
    assert second.means() == whole.means()


def test_a_step_that_was_skipped_does_not_spoil_the_mean():
    means = IntervalMeans(["a/en"], {})
    means.add(metrics([6], [3]))
    means.add(metrics([np.nan], [3], loss=np.nan))
    assert means.means()["loss/a/en"] == 2.0
    assert IntervalMeans(["a/en"], {}).means() == {}


def test_known_metrics_are_those_of_the_log():
    assert known_metrics(["b/en", "a/en", "b/en"]) == [
        "loss",
        "grad_norm",
        "loss/a/en",
        "loss/b/en",
    ]


def test_lines_that_will_be_repeated_are_dropped_and_a_torn_one_is_ignored(tmp_path):
    log = MetricsLog(tmp_path, 1)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 1.0 / step, "tokens_consumed": {"a": step}})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]
    log = MetricsLog(tmp_path, 3)
    log.write({"step": 3, "loss": 9.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 0.5), (3, 9.0)]


def test_tensorboard_holds_the_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path, 1)
    log.write({"step": 1, "loss": 2.5, "loss/ecommerce/de": 3.5, "batch_fingerprint": "ab"})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "loss/ecommerce/de"}
    assert events.Scalars("loss")[0].value == 2.5 and events.Scalars("loss")[0].step == 1


def test_a_run_without_metrics_has_none(tmp_path):
    assert read_metrics(tmp_path) == []
