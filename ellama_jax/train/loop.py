"""The training loop: from a configuration to a trained checkpoint, resumable at any step.

Owns the order of things in a run. The arithmetic is step.py's, the batches are tokens/loader.py's,
what a checkpoint holds saving.py's, and what is said of it all reporting.py's.
"""

import argparse
import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from ellama_jax.config import load_config
from ellama_jax.core.distributed import leads, on_leader, one_job
from ellama_jax.core.ending import Steps, ends_as_one, sigterm_stops
from ellama_jax.core.exits import EXIT_GATE
from ellama_jax.core.ownership import owned
from ellama_jax.core.progress import progress
from ellama_jax.core.sharding import local_rows, make_mesh, place_batch
from ellama_jax.train.goodput import STEP, Goodput, read_goodput
from ellama_jax.train.kept import RunFiles
from ellama_jax.train.metrics import read_metrics
from ellama_jax.train.prefetch import Placed, Prefetched
from ellama_jax.train.profiling import Profiler
from ellama_jax.train.program import Program, compile_program, compiled_once, make_program
from ellama_jax.train.reporting import (
    Dispatched,
    OwnTime,
    StepReport,
    say_goodput,
    say_what_runs,
    tell_others,
)
from ellama_jax.train.run import Run, prepare_run, set_aside_unreadable, write_config
from ellama_jax.train.saving import (
    SoFar,
    check_room,
    full_disk_in_one_line,
    open_manager,
    save,
    start_or_resume,
)
from ellama_jax.train.scoring import RunScores
from ellama_jax.train.step import TrainState
from ellama_jax.train.validation import Validation
from ellama_jax.train.watchdog import Watchdog
from ellama_jax.weights.checkpoint import check_saves

_SECS_BETWEEN_LOOKS = 0.005


def main_train(argv: list[str]) -> None:
    """Runs the verb `train`."""
    began = time.time()
    parser = argparse.ArgumentParser(
        prog="ellama train",
        description="Continue the pretraining of a checkpoint; the same command resumes a run.",
        epilog="example:\n  ellama train --config configs/ellama.py:8b --workdir runs/8b \\\n"
        "      --config.model.checkpoint=llama3.1-8b --config.data.windows_dir=windows",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE[:ARG]", help="configuration file; required")
    parser.add_argument("--config.SECTION.KEY", metavar="VALUE", help="overrides one key")
    parser.add_argument("--workdir", required=True, help="directory of the run, local or gs://")
    parser.add_argument(
        "--allow-unverified",
        action="store_true",
        help="train from a checkpoint that failed `ellama verify`",
    )
    if "-h" in argv or "--help" in argv:
        parser.parse_args(["--help"])
    with one_job(), _refusals_in_one_line():
        config, others = load_config(argv, "train")
        args = parser.parse_args(others)
        unverified = args.allow_unverified
        with owned(args.workdir, "ellama train"):
            train(prepare_run(config, args.workdir, allow_unverified=unverified, began=began))


@contextlib.contextmanager
def _refusals_in_one_line() -> Iterator[None]:
    """Turns what a compiler or a device refuses into a ValueError, where a user can mend it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if said := _say_refusal(str(error)):
            raise ValueError(said) from error
        raise


def _say_refusal(text: str) -> str | None:
    """Says what a user can change of what a compiler or a device refused; None if nothing."""
    first = text.partition("\n")[0]
    if "No such compile option" in first:
        return f"train.xla_flags: must be flags of this device's compiler, got: {first}."
    if "RESOURCE_EXHAUSTED" in first and "vmem" in first:
        return f"model.attention.block_q, block_kv: must fit the chip's own memory, got: {first}"
    if "RESOURCE_EXHAUSTED" in first:
        return (
            f"the step needs more memory than a device has: {first} Take model.remat=auto, more of "
            "train.num_microbatches, or more devices; `ellama plan --search` says what fits."
        )
    return None


def train(run: Run) -> Path:
    """Trains up to the configured number of steps and returns the checkpoint root.

    A run directory that holds a checkpoint is continued from it.

    Raises:
        ValueError: if the checkpoint found does not fit the configuration, or too many updates in a
            row were not finite.
    """
    cache, platform = run.config.train.compilation_cache, jax.devices()[0].platform
    with compiled_once(cache, run.workdir, platform):
        return _train(run)


def _train(run: Run) -> Path:
    config, asked = run.config, run
    on_leader(lambda: set_aside_unreadable(run.workdir))
    goodput, files = Goodput(run.began, earlier=read_goodput(run.workdir)), RunFiles(run.workdir)
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    num_sources = len(run.loader.sources)
    if config.model.remat == "auto":
        with goodput.span("compile"):
            config, program = compile_program(config, run.model, mesh, num_sources, _say_remat)
        run = dataclasses.replace(run, config=config)
    else:
        program = make_program(config, run.model, mesh, num_sources)
    on_leader(lambda: check_room(run, program))
    idle = False
    try:
        # Leaving the manager waits until a save under way is whole.
        with (
            sigterm_stops() as allowed,
            jax.set_mesh(mesh),
            open_manager(run) as manager,
            _profiler(run) as profiler,
        ):
            done = manager.latest_step() or 0
            # To start a finished run again is no part of what it took.
            idle = done >= config.train.steps
            if done > config.train.steps:
                raise ValueError(
                    f"train.steps: must be at least the {done} that {run.workdir} has done, got "
                    f"{config.train.steps}; a shorter run needs a workdir of its own."
                )
            scores = RunScores(run, mesh, done, files) if run.questions else None
            with goodput.span("restore"):
                state, so_far = start_or_resume(run, program, manager)
            first = int(state.step)
            idle = first >= config.train.steps  # a damaged newest step may have been passed over
            lost = [record for record in read_metrics(run.workdir) if record["step"] > first]
            goodput.resume_after(first, lost)
            on_leader(lambda: write_config(asked, files))
            if leads():
                say_what_runs(run, mesh, first)
            stopped = False
            if scores is None or not scores.refusal:
                stopped = _steps(
                    run, files, program, manager, state, so_far, goodput, profiler, allowed, scores
                )
            goodput.enter("checkpoint")
            goodput.complete = not stopped
    finally:
        if leads():
            if not idle:
                goodput.write(files, force=True)
            files.close()
    say_goodput(goodput)
    if stopped:
        if leads():
            said = f"stopped by {allowed.stopped_by} after a checkpoint; the same command resumes."
            print(said, file=sys.stderr)
        sys.exit(allowed.status)
    if scores is not None and scores.refusal:
        if leads():
            print(scores.refusal, file=sys.stderr)
        sys.exit(EXIT_GATE)
    return run.workdir / "checkpoints"


def _steps(
    run: Run, files: RunFiles, program: Program, manager, state: TrainState, so_far: SoFar,
    goodput: Goodput, profiler: Profiler, allowed: Steps, scores: RunScores | None,
) -> bool:  # fmt: skip
    """Runs the remaining steps; a step's metrics are read once the next one is under way.

    Returns:
        whether SIGTERM ended them early, the same on every process.
    """
    config, mesh = run.config, program.mesh
    first, last = int(state.step), config.train.steps
    save_every_secs = config.checkpoint.save_every_secs
    rows = run.loader.iterate(first, last, functools.partial(local_rows, mesh))
    own, depth = OwnTime(goodput), config.train.prefetch_batches
    with (
        progress("training", total=last, unit="steps", shown=leads()) as bar,
        StepReport(run, files, mesh, so_far, goodput, own, bar, first) as report,
        Prefetched(rows, lambda batch: place_batch(batch, mesh), depth) as batches,
        _watchdog(run, goodput, report) as watchdog,
        ends_as_one(),
        _refusals_in_one_line(),
        full_disk_in_one_line(run),
    ):

        def checkpoint(evaluated, *, due: bool, last: bool) -> None:
            with goodput.span("checkpoint"):
                report.publish()
                save(run, manager, state, so_far, evaluated, due=due, last=last)

        bar.update(first)
        evaluate = _evaluation(run, program, goodput, watchdog, scores)
        if first == 0 and evaluate is not None:
            report.baseline(evaluate(state))
        goodput.enter(STEP)
        pending, compiled, saved, stopped = None, set(), time.monotonic(), False
        for step in range(first + 1, last + 1):
            batch = _next_batch(
                batches, pending, goodput, own, functools.partial(allowed.over, step)
            )
            if batch is None or not allowed.may_begin(step, compiles=not compiled):
                stopped = True
                break
            with goodput.span("profile"):
                profiler.before(step)
            new = batch.arrays["inputs"].shape not in compiled
            compiled.add(batch.arrays["inputs"].shape)
            # Once it runs, nothing may go between host and devices unasked: either would wait.
            with jax.transfer_guard("allow" if new else "disallow"), profiler.annotate(step):
                with goodput.span("compile" if new else STEP):
                    state, metrics = own.waiting(program.run, state, batch.arrays)
                allowed.begun(step)
                if pending is not None:
                    report.finish(pending)
                overdue = 0 < save_every_secs <= time.monotonic() - saved
                overdue &= not report.asked_to_save
                told = own.waiting(tell_others, batch, mesh, overdue, own.take())
            pending = Dispatched(step, batch.arrays["inputs"].size, metrics, told)
            watchdog.beat()
            check_saves()
            ending = step == last
            due = step % config.checkpoint.save_every_steps == 0
            evaluating = evaluate and (ending or step % config.evaluate.every_steps == 0)
            profiled = profiler.due(step, last=ending)
            # Other processes are heard one step later, by all of them at the same one.
            saving = due or report.asked_to_save
            if ending or saving or evaluating or profiled:
                evaluated = evaluate(state, metrics) if evaluating else {}
                ending |= scores is not None and bool(scores.refusal)
                report.finish(pending, evaluated)
                pending = None
                if profiled:
                    with goodput.span("profile"):
                        profiler.finish(step)
                if ending or saving:
                    saved, report.asked_to_save = time.monotonic(), False
                    checkpoint(evaluated, due=due, last=ending)
                if ending:
                    break
        if stopped:
            if pending is not None:
                report.finish(pending)
            checkpoint({}, due=False, last=False)
    return stopped


def _say_remat(remat: str) -> None:
    if leads():
        print(f"model.remat=auto: compiling with {remat}", file=sys.stderr)


def _next_batch(
    batches: Prefetched, pending: Dispatched | None, goodput: Goodput, own: OwnTime,
    over: Callable[[], bool],
) -> Placed | None:  # fmt: skip
    """Returns the next batch; only the time in which the devices have nothing to do is lost.

    None if `over` says that no batch is needed while there is none yet.
    """
    while pending is not None and not pending.metrics.loss.is_ready():
        batch = own.waiting(batches.get, _SECS_BETWEEN_LOOKS)
        if batch is not None:
            return batch
    with goodput.span("data_wait"):
        while (batch := batches.get(_SECS_BETWEEN_LOOKS)) is None and not over():
            pass
        return batch


def _evaluation(
    run: Run, program: Program, goodput: Goodput, watchdog: Watchdog, scores: RunScores | None
):
    """Returns `evaluate(state, after)`, which waits for `after` first; None if there is nothing."""
    if run.held_out is None and scores is None:
        return None
    validation = None
    if run.held_out is not None:
        validation = Validation(run.config, run.model, program.mesh, run.held_out)

    def evaluate(state: TrainState, after=()) -> dict[str, float]:
        jax.block_until_ready(after)  # so far it is the step's time
        with goodput.span("evaluation"):
            found = validation.run(state.params, watchdog.beat) if validation else {}
            if scores is not None:
                found |= scores.run(state.params, int(state.step), watchdog.beat)
            return found

    return evaluate


def _profiler(run: Run) -> Profiler:
    start, count = run.config.train.profile_start_step, run.config.train.profile_steps
    return Profiler(run.workdir, start, count, leads=leads())


def _watchdog(run: Run, goodput: Goodput, report: StepReport) -> Watchdog:
    name = f"process {jax.process_index()}: " if jax.process_count() > 1 else ""
    secs, abort = run.config.train.hang_secs, run.config.train.abort_on_hang

    def where() -> str:
        return f"after step {report.finished} of {run.config.train.steps}, {goodput.doing}"

    return Watchdog(secs, where, abort=abort, name=name)
