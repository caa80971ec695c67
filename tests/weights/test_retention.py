"""Which steps stay: the newest, every N-th, the best by a metric, and never fewer than asked."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ellama_jax.core.sharding import make_mesh
from ellama_jax.model.llama import abstract_params
from ellama_jax.tokens.tokenizer import load_tokenizer
from ellama_jax.train.optimizer import abstract_opt_state
from ellama_jax.weights.checkpoint import (
    make_meta,
    open_manager,
    restore_leaf,
    restore_training,
    save_training,
)
from ellama_jax.weights.layout import best_step, find_checkpoint, read_metrics

METRIC = "loss/general/en"


@pytest.fixture
def save(tmp_path, tiny, draw_params, tokenizer_dir):
    """Returns `save(values, **options)`: saves steps 10, 20, ... with these values of METRIC."""
    params = jax.tree.map(jnp.asarray, draw_params(tiny))
    opt_state = optax.sgd(1e-3, momentum=0.9).init(params)
    fingerprint = load_tokenizer(tokenizer_dir).fingerprint

    def save(values, first=10, named=METRIC, force=False, **options):
        meta = make_meta(
            tiny,
            tokenizer_fingerprint=fingerprint,
            provenance={"kind": "train"},
            config={"checkpoint": {"best_metric": named}},
        )
        options = {"save_every_steps": 10, "keep_last": 1, **options}
        with open_manager(tmp_path / "run", tokenizer_dir=tokenizer_dir, **options) as manager:
            for step, value in enumerate(values):
                metrics = {"loss": 1.0} if value is None else {"loss": 1.0, METRIC: value}
                assert save_training(
                    manager, first + 10 * step, params, opt_state, {}, meta, metrics=metrics,
                    force=force,
                )  # fmt: skip
        return tmp_path / "run"

    return save


def steps(root):
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())


def test_every_n_th_step_stays_beside_the_newest(save):
    root = save([1.0] * 9, keep_last=2, keep_every_steps=40)
    assert steps(root) == [40, 80, 90]


def test_the_best_steps_stay_whatever_their_age(save):
    root = save([5.0, 2.0, 4.0, 3.0, 6.0, 7.0], best_metric=METRIC, keep_best=2)
    assert steps(root) == [20, 40, 60]
    assert find_checkpoint(root / "best").step == 20
    assert find_checkpoint(root).step == 60


def test_a_step_that_was_not_due_makes_room_and_pushes_no_due_one_out(save):
    save([1.0] * 3, keep_last=2)
    root = save([1.0], first=35, keep_last=2, force=True)
    assert steps(root) == [20, 30, 35]
    save([1.0], first=36, keep_last=2, force=True)
    assert steps(root) == [20, 30, 36]
    save([1.0], first=40, keep_last=2)
    assert steps(root) == [30, 40]


def test_the_best_stays_over_a_restart(save):
    save([2.0, 5.0], best_metric=METRIC)
    root = save([4.0, 3.0], first=30, best_metric=METRIC)
    assert steps(root) == [10, 40] and best_step(root) == 10


def test_of_equal_steps_the_newest_is_the_best(save):
    root = save([3.0, 2.0, 2.0, 5.0], best_metric=METRIC)
    assert steps(root) == [30, 40] and best_step(root) == 30


def test_a_step_without_the_metric_is_never_best_and_never_in_the_way(save):
    root = save([None, 2.0, None, 3.0], best_metric=METRIC)
    assert steps(root) == [20, 40] and best_step(root) == 20


def test_a_metric_may_be_chosen_later(save):
    """Each step stores all metrics, so steps saved under another choice can still be compared."""
    save([2.0, 4.0], named="loss", keep_last=5)
    root = save([3.0], first=30, best_metric=METRIC, keep_last=5)
    assert best_step(root) == 10


def test_steps_from_before_there_were_metrics_restore_and_are_not_best(save):
    root = save([1.0, 2.0], keep_last=5)
    shutil.rmtree(root / "10" / "metrics")
    assert best_step(root) == 20
    shutil.rmtree(root / "20" / "metrics")
    with pytest.raises(ValueError, match="must have the metric loss/general/en, got no metrics"):
        find_checkpoint(root / "best")
    assert find_checkpoint(root).step == 20


def test_a_run_that_names_no_metric_has_no_best(save):
    root = save([1.0], named="")
    with pytest.raises(
        ValueError, match="run/best: must be of a run with a checkpoint.best_metric"
    ):
        find_checkpoint(root / "best")


def test_a_metric_that_no_step_has_is_named_with_those_there_are(save):
    root = save([1.0], named="loss/general/de")
    message = r"metric loss/general/de, got loss, loss/general/en"
    with pytest.raises(ValueError, match=message):
        find_checkpoint(root / "best")


def test_the_best_step_must_be_complete(save):
    root = save([1.0, 2.0, 3.0], keep_last=5)
    (root / "10" / "_CHECKPOINT_METADATA").unlink()
    assert best_step(root) == 20


def test_an_incomplete_newest_step_does_not_push_out_the_one_to_restore(save):
    """With one step kept, the rest of a broken save must not count as that one."""
    root = save([1.0])
    broken = root / "20"
    shutil.copytree(root / "10", broken)
    (broken / "_CHECKPOINT_METADATA").unlink()
    save([1.0], first=30)
    assert steps(root) == [30]
    shutil.copytree(root / "30", root / "40.orbax-checkpoint-tmp")
    save([], keep_last=1)
    assert steps(root) == [30] and find_checkpoint(root).step == 30


# --- on disk -------------------------------------------------------------------------------------


def chunk_shape(step_dir, item, name):
    """Returns the chunks of an array on disk, as its own zarr metadata says."""
    import tensorstore as ts

    kvstore = {"driver": "ocdbt", "base": f"file://{step_dir / item}/"}
    spec = {"driver": "zarr", "kvstore": {**kvstore, "path": name}}
    return ts.open(spec, read=True).result().chunk_layout.read_chunk.shape


def test_layers_are_chunks_of_their_own_in_parameters_and_optimizer_state(save):
    root = save([1.0])
    assert chunk_shape(root / "10", "params", "layers.mlp.w_up") == (1, 64, 192)
    assert chunk_shape(root / "10", "opt_state", "0.trace.layers.mlp.w_up") == (1, 64, 192)
    assert chunk_shape(root / "10", "params", "embed.table") == (512, 64)
    assert restore_leaf(root / "10", "layers/mlp/w_up").shape == (2, 64, 192)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_run_of_eight_devices_restores_on_fewer(
    tmp_path, tiny, draw_params, tokenizer_dir, devices
):
    """Parameters and AdamW's moments, divided by fsdp and tensor, bit for bit on another mesh."""
    optimizer = optax.adamw(1e-3)
    eight = make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 2})
    fewer = make_mesh({"data": 1, "fsdp": -1, "context": 1, "tensor": 1}, jax.devices()[:devices])

    def shapes(mesh):
        params = abstract_params(tiny, jnp.float32, mesh)
        return params, abstract_opt_state(optimizer, params)

    params = draw_params(tiny)
    state = params, jax.tree.map(np.asarray, optimizer.init(params))
    state = jax.tree.map(lambda x: x + np.asarray(3, x.dtype), state)
    placed = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), state, shapes(eight))
    meta = make_meta(
        tiny, tokenizer_fingerprint=load_tokenizer(tokenizer_dir).fingerprint, provenance={}
    )
    options = {"tokenizer_dir": tokenizer_dir, "save_every_steps": 1, "keep_last": 1}
    with open_manager(tmp_path / "run", **options) as manager:
        save_training(manager, 1, *placed, {}, meta)
    with open_manager(tmp_path / "run", **options) as manager:
        _, *got, _, _ = restore_training(manager, *shapes(fewer))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(state), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert len(got[0]["layers"]["mlp"]["w_up"].sharding.device_set) == devices


def test_metrics_are_stored_as_they_are(save):
    root = save([0.1 + 0.2])
    assert read_metrics(root / "10") == {"loss": 1.0, METRIC: 0.1 + 0.2}
