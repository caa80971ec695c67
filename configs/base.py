"""Every key of a run, with the values of the e-Llama paper where it states them.

What: the common ground of all configurations; it is not a run by itself (no weights, no data).
Paper: e-Llama, arXiv 2501.09706: mixture 1 : 1, peak learning rate 10 % of the base model's own,
cosine schedule with warm-up, about 85k updates of 11.8M tokens with 8,192 tokens a sequence.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

LANGUAGES = ("en", "de", "fr", "it", "es")


def get_config() -> ConfigDict:
    """Returns the configuration that other files start from."""
    config = ConfigDict()

    model = config.model = ConfigDict()
    model.preset = "llama3.1-8b"  # shapes, see ellama_jax/model/presets.py
    model.checkpoint = ""  # checkpoint root of the base model; "" starts from random weights
    model.init_seed = 0  # seed of those random weights
    # What backward computes again: none | dots | attention (all but its result) | full (all, from
    # the layers' inputs) | offload (those wait on the host) | auto (the first of them that fits).
    model.remat = "full"
    # auto: bfloat16 on accelerators, float32 on CPU. float32 is so in matrix products too, which on
    # a TPU then take several passes.
    model.compute_dtype = "auto"
    # Of the parameters being trained; updates of bfloat16 are rounded stochastically.
    model.param_dtype = "float32"
    # On a device at most as many logits as so many positions have exist at one time.
    model.loss_chunk_tokens = 2048
    attention = model.attention = ConfigDict()
    attention.kernel = "auto"  # by platform; or splash | cudnn | triton | blockwise | dense
    attention.block_q = 1024  # queries a block of splash and blockwise; smaller where rows ask
    attention.block_kv = 1024  # keys a block
    # Splash: one backward kernel, 5 products in place of 7, which keeps a part of the queries'
    # gradient for each block of keys. For rows of few blocks.
    attention.fused_backward = False
    attention.context = "all_gather"  # how keys reach queries over mesh.context: all_gather | ring

    mesh = config.mesh = ConfigDict()  # sizes of the mesh axes; one may be -1: all that remain
    mesh.data = 1  # replicas; slices (DCN) divide this axis
    mesh.fsdp = -1  # parameters, optimizer state and rows divided
    mesh.context = 1  # positions of a row divided
    mesh.tensor = 1  # heads, mlp and vocabulary divided

    data = config.data = ConfigDict()
    data.windows_dir = (
        ""  # directory, or gs:// place, of the window sets that `ellama prepare` wrote
    )
    data.seqio_mixture = ""  # or this SeqIO mixture or task, tokenised while it is read: for trials
    data.seqio_module = ""  # module, or file.py, that registers it
    data.replay_frac = 0.5  # share of tokens from the general domain
    data.ecommerce_shares = ConfigDict({language: 0.2 for language in LANGUAGES})  # of its tokens
    data.general_shares = ConfigDict(  # of the general tokens; the paper: 10 % not English
        {"en": 0.9, "de": 0.025, "fr": 0.025, "it": 0.025, "es": 0.025}
    )
    # Set name -> weight, among the sets of one domain and language; none: by their tokens. What a
    # file names here a command line changes with --config.data.source_weights['general-en']=2.
    data.source_weights = ConfigDict()
    # Name -> ConfigDict of start_step and the shares above that change then, for example
    # data.stages.anneal = ConfigDict({"start_step": 70000, "replay_frac": 0.3}): a late switch to
    # the data that matter most (arXiv 2407.07263).
    data.stages = ConfigDict()
    data.max_epochs = 4.0  # how often a set may be read; up to 4 is nearly new (arXiv 2305.16264)
    data.max_epochs_by_source = ConfigDict()  # set name -> its own number
    data.on_repetition = "error"  # what more repetition is: error | warn
    data.seq_len = 8192  # tokens a row; divides the window length
    data.global_batch_size = 1440  # rows a step over all hosts
    # Step -> rows of the steps before it; from the last one on global_batch_size. For example
    # ConfigDict({"2000": 360, "6000": 720}): Llama 3 grew its batch so (arXiv 2407.21783).
    data.batch_ramp = ConfigDict()
    data.seed = 0  # order of the windows and of the mixture
    data.num_read_threads = 4  # reading ahead, per host

    optimizer = config.optimizer = ConfigDict()  # AdamW (arXiv 1711.05101)
    optimizer.b1 = 0.9
    optimizer.b2 = 0.95
    optimizer.eps = 1e-8
    optimizer.weight_decay = 0.1  # on matrices; norms and the embedding are not decayed
    optimizer.clip_norm = 1.0  # global gradient norm
    optimizer.mu_dtype = "float32"  # first moment between steps; bfloat16: stochastically rounded
    optimizer.nu_dtype = "float32"  # second moment, the same
    optimizer.ema_decay = 0.0  # moving average of the parameters, as 0.999; 0: none is kept
    optimizer.ema_dtype = "float32"  # of that average
    optimizer.rounding_seed = 0  # random bits of stochastic rounding; used with bfloat16 only

    schedule = config.schedule = ConfigDict()  # linear warm-up, then cosine
    schedule.peak_frac = 0.1  # peak as a fraction of the base model's own peak learning rate
    schedule.base_peak_learning_rate = placeholder(float)  # None: the preset's; else this value
    schedule.warmup_steps = 1000
    schedule.final_frac = 0.1  # where the cosine ends, as a fraction of the peak

    train = config.train = ConfigDict()
    train.steps = 85000
    train.num_microbatches = 1  # gradients are summed over this many parts of a batch
    train.max_nonfinite_steps = 10  # consecutive skipped updates after which the job stops
    # Compiler flag -> value as text, over ellama_jax/core/xla_flags.py's; "" takes one away. A command
    # line gives it whole: --config.train.xla_flags="{'xla_name': 'true'}".
    train.xla_flags = ConfigDict()
    # Directory, on a disk or in a bucket, of compiled programs: a restart finds them there. auto: in
    # the run's own, but none on CPU; "": none.
    train.compilation_cache = "auto"
    # An update whose loss or gradient norm lies this many standard deviations above the mean of the
    # last ones is left out; OLMo: 6; 0: none is.
    train.spike_factor = 0.0
    train.spike_window = 128  # updates in that mean
    train.max_spikes = 10  # in a row; the next one is accepted: the data have changed
    train.prefetch_batches = 2  # batches that wait on the devices, 20 bytes a position each
    train.report_every_steps = 100  # steps between accounts of time (goodput) and of stragglers
    train.straggler_ratio = 1.2  # name a process that makes steps this many times longer
    train.hang_secs = 1800.0  # print all stacks when nothing happened for so long; 0: never
    train.abort_on_hang = False  # and end the process then, status 75, for a scheduler to restart
    train.profile_start_step = 0  # first step of a profile; 0: none (SIGUSR1 takes one at any time)
    train.profile_steps = 3  # steps in a profile
    train.wandb_project = ""  # Weights & Biases project; "": none

    checkpoint = config.checkpoint = ConfigDict()
    checkpoint.save_every_steps = 500
    # Save too when the last save began so long ago, by process 0's clock; 0: never. Such a step is
    # there to resume from: the next one replaces it, and it is never best.
    checkpoint.save_every_secs = 0.0
    checkpoint.keep_last = 3  # newest that stay of the steps that save_every_steps asks for
    checkpoint.keep_every_steps = 0  # steps divisible by this stay for ever; 0: none
    checkpoint.best_metric = (
        ""  # lowest is best: loss, eval_loss, either of a <domain>/<language>, grad_norm; "": none
    )
    checkpoint.keep_best = (
        1  # how many steps stay that are best by best_metric, its mean since a save
    )

    evaluate = config.evaluate = ConfigDict()
    evaluate.windows_dir = ""  # window sets held out, whose loss is taken during training; "": none
    evaluate.every_steps = 500  # how often, beside before the first step and after the last
    evaluate.batches = 4  # how much, in rows of data.global_batch_size over all sets together
    evaluate.items_per_task = 100  # e-commerce questions a task and language
    evaluate.mmlu_per_language = 285  # general questions a language
    evaluate.texts_per_source = 50  # held-out documents a domain and language, for bits per byte
    evaluate.row_length = 1024  # tokens a packed scoring row
    evaluate.rows_per_batch = 8  # rows scored at one time
    evaluate.alphas = (
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
    )  # a sweep's first: (1 - alpha) base + alpha adapted
    # Questions scored during training, as `ellama evaluate --tasks` names them: ecommerce, mmlu,
    # bits_per_byte, comma-separated; "": none. Before the first step they are the base's.
    evaluate.tasks = ""
    evaluate.benchmark_dir = ""  # of `ellama build-benchmark`, for e-commerce tasks
    evaluate.texts_path = ""  # held-out documents, JSONL or of `ellama curate`, for bits_per_byte
    evaluate.split = "validation"  # or test; what stops or chooses a run should not be reported
    evaluate.window = 1024  # tokens of context that bits per byte uses at most
    gate = evaluate.gate = ConfigDict()  # what must be kept of the base, as relative changes
    gate.action = "warn"  # of a broken rule: off | warn | stop (save, then exit with status 3)
    gate.general_mean = -0.01  # mean accuracy of general tasks, every task and language alike
    gate.language = -0.03  # accuracy of general tasks in each language
    gate.bits_per_byte = 0.03  # bits per byte of general text in each language may rise so much
    # certain: the whole 95 % interval is beyond the limit; likely: the change itself is; possible:
    # any of the interval is.
    gate.fails_when = "certain"
    # The rule of `ellama merge-sweep`: best e-commerce of the alphas that keep general ability.
    sweep = evaluate.sweep = ConfigDict()
    sweep.max_points = 9  # alphas of a curve; beyond evaluate.alphas they go where it bends
    sweep.best_by = "accuracy"  # or bits_per_byte: what is best at e-commerce
    sweep.general_mean = -0.01  # mean accuracy of general tasks, as a relative change ...
    sweep.standard_errors = 1.0  # ... or so many standard errors of it, if that is more
    sweep.bits_per_byte = 0.01  # mean bits per byte of general text may rise so much
    return config
