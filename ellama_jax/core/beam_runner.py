"""Where Beam's graphs run: its options, its default runner, and its errors as ours.

Owns what every verb that runs on Beam shares. Imported by those only, for Beam takes seconds.
"""

import argparse
import contextlib
import difflib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn

LOCAL_RUNNER = "--runner=FnApiRunner"
_DASK = "apache_beam.runners.dask.dask_runner.DaskRunner"
# Pieces that Dask cuts a list of work into where the user names no number; Beam's own default is
# one piece for 128 elements, which leaves all but one worker idle.
_DASK_PIECES = 32


def check_beam_options(options: Sequence[str], own: Iterable[str]) -> list[str]:
    """Returns Beam's options with the in-process runner as the default; unknown ones are refused.

    Args:
        options: what the user gave, but for the verb's own options.
        own: names of these.

    Raises:
        ValueError: for an option that is nobody's, or a runner that cannot be had.
    """
    logging.disable(logging.WARNING)  # it warns of clients that nobody asked for
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import create_runner

    logging.disable(logging.NOTSET)

    runner = _RaisingParser(add_help=False, allow_abbrev=False)
    runner.add_argument("--runner")
    name = runner.parse_known_args(list(options))[0].runner
    if not name:
        # Beam's DirectRunner would first download another program, Prism; this is in the package.
        options = [*options, LOCAL_RUNNER]
    elif name in ("DaskRunner", _DASK):
        options = _dask_options([o for o in options if o != f"--runner={name}"])
    else:
        try:
            create_runner(name)
        except (ValueError, ImportError, AttributeError) as error:
            raise ValueError(f"--runner: must be one of Beam's, got {name}: {error}") from error
    known = _RaisingParser(add_help=False, allow_abbrev=False)
    for options_class in PipelineOptions.__subclasses__():
        with contextlib.suppress(argparse.ArgumentError):
            options_class._add_argparse_args(known)
    _, unknown = known.parse_known_args(list(options))
    if unknown:
        names = [*known._option_string_actions, *own]
        near = difflib.get_close_matches(unknown[0].split("=")[0], names, n=1)
        raise ValueError(
            f"{unknown[0]}: must be an option of the verb or of Beam, got neither; "
            f"{f'did you mean {near[0]}?' if near else 'see --help.'}"
        )
    return list(options)


def _dask_options(options: Sequence[str]) -> list[str]:
    try:
        import dask.distributed  # noqa: F401
        from apache_beam.runners.dask import dask_runner  # noqa: F401  declares its options
    except ImportError as error:
        raise ValueError(
            f"--runner: DaskRunner needs dask.distributed, got {error}; `pip install "
            "ellama_jax[dask]`, also where its workers run."
        ) from error
    cut = any(option.startswith(("--dask_npart", "--dask_partition_size")) for option in options)
    more = [] if cut else [f"--dask_npartitions={_DASK_PIECES}"]
    return [*options, *more, f"--runner={_DASK}"]


class _RaisingParser(argparse.ArgumentParser):
    """A parser whose errors are ours to say: Beam has two screens of options."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')}.")


def run_graph(build: Callable, options: Sequence[str]) -> None:
    """Builds a graph and runs it to its end.

    Args:
        build: adds its steps to the pipeline that it gets. Some runners (Dask's) run what the last
            of them needs and nothing else.
        options: as `check_beam_options` returns them.

    Raises:
        ValueError, OSError: what a worker raised as one, in its own words.
        Exception: whatever else the runner raises.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    # Here a worker's error is told once, by who catches it; a cluster's service may say more.
    traceback = os.environ.get("ELLAMA_TRACEBACK")
    quiet = LOCAL_RUNNER in options and not traceback
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL if quiet else logging.WARNING)
    pipeline = beam.Pipeline(options=PipelineOptions(list(options)))
    build(pipeline)
    try:
        result = pipeline.run()
        try:
            result.wait_until_finish()
        finally:
            if client := getattr(result, "client", None):  # Dask's; it would wait for ever
                client.close()
    except RuntimeError as error:
        # The runner wraps a worker's error in its own, with a traceback as text.
        found = re.search(r"(ValueError|OSError): (.*?)(?: \[while running|\n|$)", str(error))
        if not found or traceback:
            raise
        raise {"ValueError": ValueError, "OSError": OSError}[found[1]](found[2]) from error


def run_jobs(options: Sequence[str], function: Callable, jobs: Sequence) -> Iterator[None]:
    """Has workers call a function with each of the jobs, once or more; yields once for each.

    Its result does not come back: what is to be known of it, it writes where the caller reads it.
    """
    import apache_beam as beam

    if jobs:
        run_graph(
            lambda pipeline: (
                pipeline
                | "jobs" >> beam.Create(list(jobs))
                | "spread" >> beam.Reshuffle()
                | "do" >> beam.Map(_call, function)
            ),
            options,
        )
    yield from (None for _ in jobs)


def _call(job, function: Callable) -> None:
    function(job)
