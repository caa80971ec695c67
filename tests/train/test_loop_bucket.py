"""A run whose directory and data are in a bucket is the run that it would be on a disk."""

import json
import os
import signal

import pytest
from fake_bucket import inject
from test_loop import assert_same_state, steady

from ellama_jax.cli import main
from ellama_jax.config import load_config
from ellama_jax.core.paths import as_path, copy_tree
from ellama_jax.tokens.tokenizer import load_tokenizer
from ellama_jax.train.metrics import MetricsLog, read_metrics
from ellama_jax.train.run import prepare_run
from ellama_jax.weights.layout import find_checkpoint, latest_step


@pytest.fixture(scope="module")
def base(bucket, windows_dir):
    """Random weights of the tiny model in the bucket, with the tokenizer of the windows."""
    import jax

    from ellama_jax.model.llama import init_params
    from ellama_jax.model.presets import get_preset
    from ellama_jax.weights.checkpoint import make_meta, write_checkpoint

    tiny, tokenizer_dir = get_preset("tiny"), windows_dir / "tokenizer"
    meta = make_meta(
        tiny,
        tokenizer_fingerprint=load_tokenizer(tokenizer_dir).fingerprint,
        provenance={"kind": "import", "format": "huggingface", "sources": []},
        verification={"status": "passed", "summary": "1 check passed"},
    )
    params = jax.device_get(init_params(tiny, 0))
    write_checkpoint(f"{bucket}/base", params, config=tiny, meta=meta, tokenizer_dir=tokenizer_dir)
    return f"{bucket}/base"


@pytest.fixture(scope="module")
def windows_in_bucket(bucket, windows_dir, held_out):
    """Arguments that read training and held-out windows where copies of them lie in the bucket."""
    for name, src in (("windows", windows_dir), ("held", held_out)):
        copy_tree(src, as_path(f"{bucket}/{name}"))
    places = {"data": "windows", "evaluate": "held"}
    return [f"--config.{key}.windows_dir={bucket}/{name}" for key, name in places.items()]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    bucket, base, windows_in_bucket, held_out, tiny_arguments, tmp_path, monkeypatch, capsys,
    cached_programs,
):  # fmt: skip
    programs = f"{bucket}/programs"
    more = [f"--config.model.checkpoint={base}", f"--config.train.compilation_cache={programs}",
            "--config.evaluate.every_steps=2", "--config.evaluate.batches=2"]  # fmt: skip
    arguments = ["train", *tiny_arguments, *more]
    here = [f"--config.evaluate.windows_dir={held_out}", f"--workdir={tmp_path / 'whole'}"]
    main([*arguments, *here])
    assert list(as_path(programs).iterdir()) and "jit_train_step" not in cached_programs()

    kinds = (429, 503, "broken", "cut")
    inject(*({"match": ".npy", "share": 0.1, "kind": kind} for kind in kinds))
    arguments += windows_in_bucket
    workdir, write = f"{bucket}/run", MetricsLog.write

    def write_and_stop(self, record):
        write(self, record)
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsLog, "write", write_and_stop)
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, f"--workdir={workdir}"])
    assert "jit_train_step" in cached_programs()
    assert stopped.value.code == 143
    stopped_after = latest_step(f"{workdir}/checkpoints")
    assert read_metrics(as_path(workdir))[-1]["step"] == stopped_after in (3, 4)
    monkeypatch.setattr(MetricsLog, "write", write)
    main([*arguments, f"--workdir={workdir}"])
    assert f"resuming after step {stopped_after}" in capsys.readouterr().out

    failed = inject()
    assert all(failed[str(kind)] for kind in kinds)
    assert_same_state(f"{workdir}/checkpoints", tmp_path / "whole" / "checkpoints")
    whole = read_metrics(tmp_path / "whole")
    assert steady(read_metrics(as_path(workdir))) == steady(whole)
    names = {entry.name for entry in as_path(workdir).iterdir()}
    written = {"config.json", "goodput.json", "metrics.jsonl", "tensorboard", "checkpoints"}
    assert names == written
    kept = json.loads((as_path(workdir) / "config.json").read_text())
    whole_config = json.loads((tmp_path / "whole" / "config.json").read_text())
    for section in ("data", "evaluate"):
        assert kept[section].pop("windows_dir").startswith(bucket)
        del whole_config[section]["windows_dir"]
    assert kept == whole_config
    assert len(list((as_path(workdir) / "tensorboard").iterdir())) == 2  # one a start
    meta = find_checkpoint(f"{workdir}/checkpoints").meta
    assert meta["provenance"]["base"] == f"{base}/0"
    assert not list(tmp_path.glob("gs:*")) and not as_path(workdir).joinpath("gs:").exists()


def test_the_tokenizer_beside_windows_in_a_bucket_is_that_of_a_run_from_random_weights(
    bucket, windows_dir, windows_in_bucket, tiny_arguments, tmp_path
):
    config, _ = load_config([*tiny_arguments, *windows_in_bucket], "train")
    run = prepare_run(config, tmp_path / "run")
    assert run.tokenizer.fingerprint == load_tokenizer(windows_dir / "tokenizer").fingerprint
    assert str(run.tokenizer_dir) == f"{bucket}/windows/tokenizer"
