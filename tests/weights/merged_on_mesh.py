"""Merges two checkpoints onto a mesh, scores and writes with the result, and prints what came out.

As a program it is one of several processes, whose devices lie on the mesh in a random order.
"""

import hashlib
import json
import sys


def merge_score_write(base, adapted, mesh=None) -> dict:
    """Returns {weights: digest, log_probs, texts: token ids}, JSON-able; None is one device."""
    import numpy as np

    from ellama_jax.core.sharding import read_whole
    from ellama_jax.core.tree import flatten_paths
    from ellama_jax.evaluate.generation import Prompt, generate
    from ellama_jax.evaluate.scorer import Request, score
    from ellama_jax.merge.stream import Recipe
    from ellama_jax.merge.verb import load_merged
    from ellama_jax.weights.alphas import Alphas
    from ellama_jax.weights.layout import find_checkpoint

    recipe, config = Recipe("linear", (Alphas((0.25,)),)), find_checkpoint(base).config
    params = load_merged(recipe, [adapted], base=base, mesh=mesh)
    weights = hashlib.sha256()
    for path, leaf in sorted(flatten_paths(read_whole(params, mesh)).items()):
        weights.update(path.encode() + np.ascontiguousarray(leaf).tobytes())
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, config.vocab_size, length).tolist() for length in (5, 9, 14, 20, 3)]
    requests = [Request(tokens, [[7, 8, 9], [11]]) for tokens in ids]
    scores = score(params, config, requests, row_length=32, rows_per_batch=2, mesh=mesh)
    prompts = [
        Prompt(tokens, 12, stops=("7 8",), temperature=float(n)) for n, tokens in enumerate(ids)
    ]
    written = generate(
        params, config, prompts, decode=lambda tokens: " ".join(map(str, tokens)), end_ids=[2],
        batch_tokens=256, mesh=mesh,
    )  # fmt: skip
    return {
        "weights": weights.hexdigest(),
        "log_probs": [result.log_probs.tolist() for result in scores],
        "texts": [result.ids for result in written],
    }


def main(seed: str, base: str, adapted: str) -> None:
    from shuffled_process import shuffle_meshes

    from ellama_jax.core.distributed import one_job

    with one_job():
        shuffle_meshes(int(seed))
        from ellama_jax.core.sharding import make_mesh

        mesh = make_mesh({"data": 1, "fsdp": 2, "context": 1, "tensor": 2})
        print(json.dumps(merge_score_write(base, adapted, mesh)))


if __name__ == "__main__":
    main(*sys.argv[1:])
