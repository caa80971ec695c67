"""One training step of ours against transformers + torch, on the same batch, alternating.

What: tokens per second of a whole update (forward, backward, clipping, AdamW), ours against torch in
float32 and bfloat16, both with random weights of the preset. Each round times every contender once,
so that a busy machine slows all alike; the ratio of medians is the result.
Command: python tools/benchmarks/train_step.py --preset smollm2-135m --rows 4 --length 256
"""

import argparse
import multiprocessing
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from ellama_jax.config import OptimizerConfig, ScheduleConfig
from ellama_jax.data.windows import to_features
from ellama_jax.model.llama import REMAT_POLICIES, init_params
from ellama_jax.model.presets import LlamaConfig, get_preset
from ellama_jax.train.optimizer import make_optimizer, make_schedule
from ellama_jax.train.step import init_state, make_loss_sums, make_train_step

CONTENDERS = ["ours float32", "torch float32", "torch bfloat16", "ours bfloat16"]
OPTIMIZER = OptimizerConfig(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)
SCHEDULE = ScheduleConfig(
    peak_frac=0.1, base_peak_learning_rate=3e-3, warmup_steps=1, final_frac=0.1
)


def make_batch(config: LlamaConfig, rows: int, length: int) -> dict:
    """Returns rows of one document each, so that both sides compute the same loss."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, config.vocab_size, (rows, length), dtype=np.uint32)
    features = [to_features(row, eos_id=2) for row in tokens]
    batch = {name: np.stack([row[name] for row in features]) for name in features[0]}
    return batch | {"source_ids": np.zeros(rows, np.int32)}


def make_ours(config: LlamaConfig, batch: dict, dtype, remat: str, chunk_tokens: int):
    """Returns a function that runs one update of ours and gives its loss."""
    optimizer = make_optimizer(OPTIMIZER, make_schedule(SCHEDULE, config, 1000))
    loss_sums = make_loss_sums(
        config, num_sources=1, compute_dtype=dtype, remat=remat, chunk_tokens=chunk_tokens
    )
    step = jax.jit(make_train_step(loss_sums, optimizer, 1), donate_argnums=0)
    params = init_params(config, 0)
    holder = [init_state(params, optimizer.init(params))]
    batch = jax.tree.map(jnp.asarray, batch)

    def update() -> float:
        holder[0], metrics = step(holder[0], batch)
        return float(metrics.loss)

    return update


def make_torch(config: LlamaConfig, batch: dict, dtype_name: str):
    """Returns a function that runs one update of transformers + torch and gives its loss."""
    import torch
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    dtype = getattr(torch, dtype_name)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        TheirConfig(
            vocab_size=config.vocab_size, hidden_size=config.embed_dim,
            intermediate_size=config.mlp_dim, num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim, max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps, tie_word_embeddings=config.tied_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
    ).to(dtype)  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    tokens = torch.tensor(batch["inputs"]).long()

    def update() -> float:
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return update


def serve(pipe, contender: str, args: argparse.Namespace) -> None:
    """Runs one contender in a process of its own: an update and its seconds for every request."""
    config = get_preset(args.preset)
    batch = make_batch(config, args.rows, args.length)
    side, dtype = contender.split()
    if side == "ours":
        update = make_ours(config, batch, jnp.dtype(dtype), args.remat, args.chunk_tokens)
    else:
        update = make_torch(config, batch, dtype)
    while pipe.recv():
        start = time.perf_counter()
        loss = update()
        pipe.send((time.perf_counter() - start, loss))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunk-tokens", type=int, default=512)
    parser.add_argument("--remat", default="dots", choices=REMAT_POLICIES)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS[:3])
    args = parser.parse_args()

    # A process each: in one, the thread pools of both sides stay in each other's way.
    context, pipes = multiprocessing.get_context("spawn"), {}
    for name in args.contenders:
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, name, args), daemon=True).start()

    def run(name: str) -> tuple[float, float]:
        pipes[name].send(True)
        return pipes[name].recv()

    first = {name: round(run(name)[1], 3) for name in pipes}  # compiles, and warms caches
    print("loss of the first update:", first, flush=True)
    secs = {name: [] for name in pipes}
    for _ in range(args.rounds):
        for name in pipes:
            secs[name].append(run(name)[0])
    tokens = args.rows * args.length
    base = statistics.median(secs[args.contenders[0]])
    for name, times in secs.items():
        median = statistics.median(times)
        ratio = f"{median / base:.2f} x the time of {args.contenders[0]}"
        shown = ", ".join(f"{t:.2f}" for t in times)
        print(f"{name:<15} {tokens / median:7.1f} tokens/s  {ratio}  (s: {shown})")
    for pipe in pipes.values():
        pipe.send(False)


if __name__ == "__main__":
    main()
