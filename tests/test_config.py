"""Configuration: what is refused, with which words, and what the shipped files say."""

import copy
import subprocess
import sys
import textwrap

import pytest

from ellama_jax.config import (
    config_from_mapping,
    config_to_mapping,
    configs_dir,
    load_config,
    load_values,
    stage_sections,
)
from ellama_jax.model.presets import get_preset
from ellama_jax.plan.targets import axis_sizes, check_sizes, parse_targets
from ellama_jax.train.optimizer import peak_learning_rate

BASE = f"--config={configs_dir() / 'base.py'}"


def base_values():
    config, _ = load_config([BASE], "train")
    return config_to_mapping(config)


def changed(**changes):
    values = copy.deepcopy(base_values())
    for path, value in changes.items():
        section, key = path.split("__")
        values[section][key] = value
    return values


ELLAMA = ("8b", "70b", "8b_v5p-256", "8b_v6e-128", "70b_v5p-512", "70b_2xv6e-256")


def test_every_shipped_configuration_loads():
    for name in (
        "base.py",
        *(f"ellama.py:{variant}" for variant in ELLAMA),
        "demo.py:smollm2-135m",
        "demo.py:tiny",
    ):
        config, others = load_config([f"--config={configs_dir() / name}"], "train")
        assert others == [] and config.train.steps > 0


def test_shipped_configurations_go_by_name_from_anywhere_and_own_files_come_first(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("ellama:8b", "ellama.py:8b", "configs/ellama.py:8b"):
        assert load_config([f"--config={name}"], "train") == load_config(
            ["--config", name], "train"
        )
        assert load_config(["--config", name], "train")[0].model.preset == "llama3.1-8b"
    assert load_values(["--config=configs/sweeps/warmup"], "sweep")[0]
    own = "from configs import demo\ndef get_config():\n    return demo.get_config('tiny')\n"
    (tmp_path / "ellama.py").write_text(own)
    assert load_config(["--config=ellama.py"], "train")[0].model.preset == "tiny"
    for name in ("../configs/demo.py", "configs/../demo.py", "nothing", ""):
        with pytest.raises(ValueError, match="^--config: "):
            load_config([f"--config={name}"], "train")


@pytest.mark.parametrize("variant", ELLAMA)
def test_the_paper_s_configurations_are_the_paper_s(variant):
    config, _ = load_config([f"--config={configs_dir() / 'ellama.py'}:{variant}"], "train")
    size = variant.partition("_")[0]
    assert config.model.preset == f"llama3.1-{size}"
    assert config.data.replay_frac == 0.5
    assert (config.data.global_batch_size, config.data.seq_len) == (1440, 8192)
    assert config.train.steps * 1440 * 8192 == pytest.approx(1e12, rel=0.01)
    peak = peak_learning_rate(config.schedule, get_preset(config.model.preset))
    assert peak == pytest.approx({"8b": 3e-5, "70b": 1.5e-5}[size])
    assert sum(v for k, v in config.data.general_shares.items() if k != "en") == pytest.approx(0.1)


@pytest.mark.parametrize("variant", ELLAMA[2:])
def test_a_pod_s_configuration_goes_onto_the_pod_it_names(variant):
    config, _ = load_config([f"--config={configs_dir() / 'ellama.py'}:{variant}"], "train")
    (target,) = parse_targets(variant.partition("_")[2])
    check_sizes(config, target)
    mesh = axis_sizes(config, target)
    assert all(getattr(config.mesh, axis) in (size, -1) for axis, size in mesh.items())


@pytest.mark.parametrize("every", [-500, 750])
def test_steps_that_stay_must_be_steps_that_are_saved(every):
    message = r"^checkpoint.keep_every_steps: must be 0 or a multiple of checkpoint.save_every_"
    with pytest.raises(ValueError, match=message):
        config_from_mapping(changed(checkpoint__keep_every_steps=every))


def test_overrides_and_other_arguments_are_told_apart():
    argv = ["--workdir", "w", BASE, "--config.train.steps=7", "--config.schedule.warmup_steps", "3",
            "--config.data.ecommerce_shares.en=0.2", "--x"]  # fmt: skip
    config, others = load_config(argv, "train")
    assert (config.train.steps, config.schedule.warmup_steps) == (7, 3)
    assert others == ["--workdir", "w", "--x"]


def test_a_user_s_file_anywhere_may_import_the_base(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        textwrap.dedent("""
        from configs import base
        def get_config():
            config = base.get_config()
            config.schedule.base_peak_learning_rate = 1e-3
            return config
    """)
    )
    config, _ = load_config([f"--config={file}"], "train")
    assert config.schedule.base_peak_learning_rate == 1e-3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], r"--config: must name a configuration file, got none"),
        (
            ["--config=/no/such/file.py"],
            r"--config: must be a file that can be loaded, got /no/such/file.py: .*No such file",
        ),
        (
            [BASE, "--config.train.stepz=3"],
            r"^--config.train.stepz: is no configuration key; did you mean steps\?$",
        ),
        (
            [BASE, "--config.trane.steps=3"],
            r"^--config.trane.steps: is no .*; did you mean train\?$",
        ),
        (
            [BASE, "--config.train.xla_flags.xla_x=1"],
            r"^--config.train.xla_flags.xla_x: is no configuration key; .*; a mapping is given whole",
        ),
        (
            [BASE, "--config.data.batch_ramp.5=3"],
            r"^--config.data.batch_ramp.5: is no .* given whole",
        ),
        ([BASE, "--config.train.steps=many"], r"steps.*many"),
        (
            [f"--config={configs_dir() / 'ellama.py'}:9b"],
            r"variant must be one of 8b, 70b, .*got 9b",
        ),
    ],
)
def test_a_wrong_command_line_is_one_clear_error(argv, message):
    with pytest.raises(ValueError, match=message):
        load_config(argv, "train")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("def get_config(:", r"^--config: SyntaxError: .*line 1"),
        ("import no_such_module", r"^--config: ModuleNotFoundError: No module named 'no_such_module'$"),
        ("def get_config(size):\n    return 1 / 0", r"^--config: ZeroDivisionError: division by zero$"),
        ("def get_config(size):\n    return 3", r"^--config: get_config must return a ConfigDict, got 3.$"),
        ("def get_config(size):\n    raise ValueError('size: must be small.')",
         r"^--config: size: must be small.$"),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_a_configuration_file_is_one_line(tmp_path, program, message):
    (tmp_path / "mine.py").write_text(program)
    with pytest.raises(ValueError, match=message):
        load_config([f"--config={tmp_path / 'mine.py'}:big"], "train")


def test_a_mapping_is_given_whole_on_the_command_line():
    config, _ = load_config([BASE, "--config.train.xla_flags={'xla_a': 'true'}"], "train")
    assert config.train.xla_flags == {"xla_a": "true"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__warmup": 3}, r"^optimizer.warmup: is no configuration key"),
        ({"schedule__warmup_step": 3}, r"^schedule.warmup_step: .*did you mean schedule.warmup_steps\?"),
        ({"schedule__warmup_steps": 90000}, r"^schedule.warmup_steps: must be smaller than train.steps \(85000\), got 90000"),
        ({"train__steps": 2.5}, r"^train.steps: must be int, got 2.5"),
        ({"train__steps": True}, r"^train.steps: must be int, got True"),
        ({"schedule__base_peak_learning_rate": -1.0}, r"^schedule.base_peak_learning_rate: must be positive, got -1.0"),
        ({"model__init_seed": 2**31}, r"^model.init_seed: must lie in \[0, 2\^31\), got 2147483648"),
        ({"optimizer__rounding_seed": -1}, r"^optimizer.rounding_seed: must lie in"),
        ({"evaluate__texts_per_source": 0}, r"^evaluate.texts_per_source: must be at least 1, got 0"),
        ({"train__steps": 0}, r"^train.steps: must be at least 1, got 0"),
        ({"mesh__fsdp": 0}, r"^mesh.fsdp: must be at least 1, or -1, got 0"),
        ({"model__compute_dtype": "fp8"}, r"^model.compute_dtype: must be one of float32, bfloat16, auto"),
        ({"train__num_microbatches": 7}, r"^data.global_batch_size: must be divisible by train.num_microbatches \(7\), got 1440"),
        ({"data__replay_frac": 1.5}, r"^data.replay_frac: must lie in \[0, 1\], got 1.5"),
        ({"data__general_shares": {"en": 0.5}}, r"^data.general_shares: must sum to 1, got 0.5"),
        ({"data__general_shares": {"en": 2.0, "de": -1.0}}, r"^data.general_shares.de: must not be negative"),
        ({"data__batch_ramp": {"5": 7}, "train__num_microbatches": 2}, r"^data.batch_ramp.5: must be divisible by train.num_microbatches \(2\), got 7"),
        ({"data__batch_ramp": {"85000": 720}}, r"^data.batch_ramp.85000: must be a step from 1 to below train.steps \(85000\), got 85000"),
        ({"data__batch_ramp": {"soon": 720}}, r"^data.batch_ramp.soon: must be a step from 1 to below"),
        ({"data__batch_ramp": {"5": 8, "9": 4}}, r"^data.batch_ramp: must grow up to data.global_batch_size, got 8, 4, 1440"),
        ({"data__batch_ramp": {"5": 1500}}, r"^data.batch_ramp: must grow up to"),
        ({"data__batch_ramp": {"5": 0}}, r"^data.batch_ramp.5: must be at least 1 row, got 0"),
        ({"data__batch_ramp": {"5": 8, "05": 8}}, r"^data.batch_ramp: must name a step once, got 5, 05"),
        ({"data__batch_ramp": {"5": 8}, "data__seqio_mixture": "m"}, r"^data.batch_ramp: must be empty with data.seqio_mixture"),
        ({"optimizer__nu_dtype": "float16"}, r"^optimizer.nu_dtype: must be one of float32, bfloat16, got float16"),
        ({"optimizer__ema_decay": 1.0}, r"^optimizer.ema_decay: must lie in \[0, 1\), got 1.0"),
        ({"train__spike_factor": -1.0}, r"^train.spike_factor: must not be negative, got -1.0"),
        ({"train__spike_window": 3}, r"^train.spike_window: must be at least 4, got 3"),
        ({"train__max_spikes": 0}, r"^train.max_spikes: must be at least 1, got 0"),
        ({"data__max_epochs": 0.0}, r"^data.max_epochs: must be positive, got 0.0"),
        ({"data__max_epochs_by_source": {"general-en": -1.0}}, r"^data.max_epochs_by_source.general-en: must be positive"),
        ({"data__on_repetition": "ignore"}, r"^data.on_repetition: must be one of error, warn, got ignore"),
        ({"data__source_weights": {"general-en": -1.0}}, r"^data.source_weights.general-en: must not be negative"),
        ({"data__seqio_module": "my.tasks"}, r"^data.seqio_module: must be empty without data.seqio_mixture, got my.tasks"),
        ({"data__stages": {"a": 3}}, r"^data.stages.a: must be a section, got 3"),
        ({"data__stages": {"a": {}}}, r"^data.stages.a.start_step: must be set"),
        ({"data__stages": {"a": {"start_step": 0}}}, r"^data.stages.a.start_step: must be from 1 to below train.steps \(85000\), .* got 0"),
        ({"data__stages": {"a": {"start_step": 85000}}}, r"^data.stages.a.start_step: .* never reached, got 85000"),
        ({"data__stages": {"a": {"start_step": 5}, "b": {"start_step": 5}}}, r"^data.stages.b.start_step: must differ from data.stages.a's, got 5"),
        ({"data__stages": {"a": {"start_step": 5, "replay_fraq": 1.0}}}, r"^data.stages.a.replay_fraq: .* did you mean data.stages.a.replay_frac\?"),
        ({"data__stages": {"a": {"start_step": 5, "replay_frac": 2.0}}}, r"^data.stages.a.replay_frac: must lie in \[0, 1\], got 2.0"),
        ({"data__stages": {"a": {"start_step": 5, "general_shares": {"en": 0.5}}}}, r"^data.stages.a.general_shares: must sum to 1, got 0.5"),
        ({"data__general_shares": 1.0}, r"^data.general_shares: must be dict"),
        ({"evaluate__alphas": (0.0, "x")}, r"^evaluate.alphas\[1\]: must be float, got 'x'"),
        ({"optimizer__b2": 1.0}, r"^optimizer.b2: must lie in \[0, 1\)"),
        ({"schedule__peak_frac": -0.1}, r"^schedule.peak_frac: must be positive"),
    ],
)  # fmt: skip
def test_values_that_cannot_work_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        config_from_mapping(changed(**changes))


def test_missing_keys_and_sections_are_named():
    values = base_values()
    del values["model"]["remat"]
    with pytest.raises(ValueError, match="^model.remat: must be set"):
        config_from_mapping(values)
    with pytest.raises(ValueError, match="^train: must be a section, got 3"):
        config_from_mapping({**base_values(), "train": 3})


def test_shares_of_an_unused_domain_need_not_sum_to_one():
    values = changed(data__replay_frac=0.0, data__general_shares={})
    assert config_from_mapping(values).data.general_shares == {}


STAGED = """
from ml_collections import ConfigDict
from configs import base
def get_config():
    config = base.get_config()
    config.data.stages.anneal = ConfigDict({"start_step": 70000, "replay_frac": 0.3})
    config.data.max_epochs_by_source = ConfigDict({"general-en": 8.0})
    return config
"""


def test_a_stage_of_a_file_is_overridden_key_by_key(tmp_path):
    (tmp_path / "staged.py").write_text(STAGED)
    file = f"--config={tmp_path / 'staged.py'}"
    argv = [file, "--config.data.stages.anneal.start_step=80000"]
    argv += ["--config.data.max_epochs_by_source['general-en']=2"]
    data = load_config(argv, "train")[0].data
    stage = data.stages["anneal"]
    assert (stage.start_step, stage.replay_frac, stage.general_shares) == (80000, 0.3, None)
    assert data.max_epochs_by_source == {"general-en": 2.0}
    with pytest.raises(ValueError, match="start_stap"):
        load_config([file, "--config.data.stages.anneal.start_stap=3"], "train")


def test_a_stage_inherits_what_it_does_not_give(tmp_path):
    values = changed(
        data__stages={"b": {"start_step": 9}, "a": {"start_step": 7, "replay_frac": 1}}
    )
    data = config_from_mapping(values).data
    sections = [(path, start, s.replay_frac) for path, start, s in stage_sections(data)]
    assert sections == [("data", 0, 0.5), ("data.stages.a", 7, 1.0), ("data.stages.b", 9, 0.5)]
    assert stage_sections(data)[2][2].general_shares == data.general_shares


def test_a_configuration_with_stages_survives_being_written():
    values = changed(data__stages={"a": {"start_step": 7, "replay_frac": 0.1}})
    config = config_from_mapping(values)
    assert config_from_mapping(config_to_mapping(config)) == config


def test_stages_do_not_go_with_a_streamed_mixture():
    values = changed(data__stages={"a": {"start_step": 7}}, data__seqio_mixture="mine")
    with pytest.raises(ValueError, match="^data.stages: must be empty with data.seqio_mixture"):
        config_from_mapping(values)


def test_whole_numbers_serve_as_floats():
    config = config_from_mapping(changed(optimizer__weight_decay=0))
    assert config.optimizer.weight_decay == 0.0 and isinstance(config.optimizer.weight_decay, float)


def test_a_wrong_key_touches_no_device():
    """The error comes before JAX is even imported."""
    code = (
        "import sys\n"
        "from ellama_jax.config import load_config\n"
        "try: load_config(sys.argv[1:], 'train')\n"
        "except ValueError as error: print(error)\n"
        "print('jax' in sys.modules)\n"
    )
    argv = [sys.executable, "-c", code, BASE, "--config.model.prest=x"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "prest" in done.stdout and done.stdout.splitlines()[-1] == "False"


def test_a_gate_that_is_to_stop_a_run_must_have_something_to_judge_by():
    stop = "--config.evaluate.gate.action=stop"
    message = "^evaluate.gate.action: stop must have mmlu or bits_per_byte among evaluate.tasks"
    for more in ([], ["--config.evaluate.tasks=ecommerce"]):
        with pytest.raises(ValueError, match=message):
            load_config([BASE, stop, *more], "train")
    load_config([BASE, stop, "--config.evaluate.tasks=ecommerce, mmlu"], "train")
