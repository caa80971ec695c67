"""How soon a job of two processes stops after SIGTERM: ellama's agreement against JAX's sync point.

    python tools/benchmarks/stop.py --workdir /tmp/stop --signals 5

Each line is one run: steps begun after the signal by the process that was furthest, seconds until the
last step was done and until both processes had ended. Process 1 gets the signal at a random moment of
a step. `jax` is jax.experimental.multihost_utils.reached_preemption_sync_point, asked after every step
as its documentation says.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

WORDS = ["red", "lamp", "oak", "table", "price", "rote", "Lampe", "Eiche", "Tisch", "Preis"]
CONFIG = """
from configs import demo
def get_config():
    config = demo.get_config("tiny")
    for shares in (config.data.ecommerce_shares, config.data.general_shares):
        shares.update({"en": 1.0, "de": 0.0, "fr": 0.0, "it": 0.0, "es": 0.0})
    return config
"""


def make_windows(root: Path) -> None:
    from ellama_jax.tokens import tokenizer as tokenizers
    from ellama_jax.tokens.windows import write_windows

    shuffled = random.Random(0)
    texts = [" ".join(shuffled.sample(WORDS, len(WORDS))) for _ in range(200)]
    bpe = tokenizers.train_byte_bpe(texts, 512)
    ends = [bpe.token_to_id(t) for t in (tokenizers.BEGIN_OF_TEXT, tokenizers.END_OF_TEXT)]
    tokenizers.save_tokenizer(root / "tokenizer", bpe, *ends)
    tokenizer = tokenizers.load_tokenizer(root / "tokenizer")
    for domain in ("ecommerce", "general"):
        write_windows(
            root / f"{domain}-en", tokenizer.encode_batch(texts), tokenizer=tokenizer,
            window_length=32, domain=domain, language="en", seed=0, sources=[], command="benchmark",
        )  # fmt: skip


def train(how: str, log: str, argv: list[str]) -> None:
    """Runs `ellama train`, and writes down when each step was begun."""
    import jax
    from jax.experimental import multihost_utils

    from ellama_jax import cli
    from ellama_jax.core import distributed, ending
    from ellama_jax.train import loop

    begun = Path(log).open("a")  # noqa: SIM115 - as long as the process

    def note(step):
        begun.write(f"{step} {time.time()}\n")
        begun.flush()

    if how == "ellama":
        may_begin = ending.Steps.may_begin

        def noted(self, step, **more):
            if allowed := may_begin(self, step, **more):
                note(step)
            return allowed

        ending.Steps.may_begin = noted
    else:
        count, index = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
        jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], count, index)

        class Asking:
            def may_begin(self, step, **_):
                if multihost_utils.reached_preemption_sync_point(step - 1):
                    return False
                note(step)
                return True

            def begun(self, step): ...

            def over(self, step):
                return False

        loop.sigterm_stops = lambda: contextlib.nullcontext(Asking())
        distributed.sigterm_stops = contextlib.nullcontext  # JAX's own handler stays
    cli.main(["train", *argv])


def stop_once(how: str, root: Path, rows: int, number: int) -> tuple[int, float, float, float]:
    """Returns steps begun after the signal, seconds to the last step and to the end, and a step's."""
    workdir = root / f"{how}-{number}"
    keys = {
        "data.windows_dir": root / "windows", "data.seq_len": 32, "data.global_batch_size": rows,
        "train.steps": 100000, "schedule.warmup_steps": 1, "checkpoint.save_every_steps": 100000,
        "model.remat": "none", "data.max_epochs": 1e9,
    }  # fmt: skip
    argv = [f"--config={root / 'run.py'}", *(f"--config.{k}={v}" for k, v in keys.items())]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    logs = [root / f"{how}-{number}-{index}.log" for index in range(2)]
    running = []
    for index, log in enumerate(logs):
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": address}
        env |= {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}
        command = [sys.executable, __file__, "--run", how, str(log), *argv, f"--workdir={workdir}"]
        running.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL,
                                        stderr=(root / f"{how}-{number}-{index}.err").open("w")))  # fmt: skip
    metrics = workdir / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 5:
        time.sleep(0.02)
        assert all(process.poll() is None for process in running)
    secs = json.loads(metrics.read_text().splitlines()[-1])["step_secs"]
    time.sleep(random.random() * secs)
    signalled = time.time()
    running[1].send_signal(signal.SIGTERM)
    statuses = [process.wait(timeout=300) for process in running]
    ended = time.time() - signalled
    assert statuses == [143, 143], statuses
    noted = [line.split() for log in logs for line in log.read_text().splitlines()]
    before = max(int(step) for step, at in noted if float(at) <= signalled)
    last = json.loads(metrics.read_text().splitlines()[-1])
    return last["step"] - before, max(0.0, last["time"] - signalled), ended, secs


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        return train(sys.argv[2], sys.argv[3], sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--signals", type=int, default=5, help="runs of each kind")
    parser.add_argument("--rows", type=int, default=1024, help="rows of a batch: a step's size")
    parser.add_argument("--how", nargs="*", default=["ellama", "jax"])
    args = parser.parse_args()
    args.workdir.mkdir(parents=True)
    make_windows(args.workdir / "windows")
    (args.workdir / "run.py").write_text(CONFIG)
    for how in args.how:
        found = []
        for number in range(args.signals):
            more, last, ended, secs = stop_once(how, args.workdir, args.rows, number)
            found.append((more, last / secs, ended))
            print(f"{how}: a step takes {secs:.2f} s; {more} steps begun after SIGTERM, last step done "
                  f"{last:.2f} s after it ({last / secs:.1f} steps), ended {ended:.1f} s after it",
                  flush=True)  # fmt: skip
        means = [statistics.mean(column) for column in zip(*found, strict=True)]
        print(f"{how}: mean {means[0]:.1f} steps more, last step done {means[1]:.2f} steps after it, "
              f"ended {means[2]:.1f} s after it", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
