"""What the source of a checkpoint says: its logits, by software that nobody here wrote.

Owns the questions (texts, rows, positions) and the answers of the source, written to one .npz file
that verify.py compares a checkpoint with. It never sees the checkpoint. It needs NumPy, torch and
transformers but neither JAX nor the rest of this package, so that it can be run wherever the source
fits, beside a copy of the package's directory:

    python -m ellama_jax.weights.reference SRC REF.npz --top-k 64

Hugging Face directories and GGUF files are run by transformers; Meta's own files, which transformers
does not read, by reference_meta.py.
"""

import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

FORMAT = 1  # of the .npz file
ROW_TOKENS = 64
FAR = 9000  # beyond 8,192, where Llama 3.1's RoPE scaling sets in
FARTHEST = 131072
# Larger files are recorded by name and size alone: hashing them takes longer than running them.
HASHED_BYTES = 2**30

# Written for this project. Prices, accents and quotes are what tokenizers get wrong.
TEXTS = {
    "en": "The waterproof hiking boots weigh 480 grams each and cost $129.95. They're made of full "
    "grain leather, don't need breaking in, and come with a two-year warranty. A reader asked: "
    '"Do they run small?" Most people say that half a size up fits best, and that the sole lasts '
    "for about a thousand kilometres on rough ground.",
    "de": "Die wasserdichten Wanderschuhe wiegen je 480 Gramm und kosten 129,95 €. Größe 42 fällt "
    "klein aus, deshalb wählen viele Käufer eine halbe Nummer größer. Das Obermaterial ist weiß "
    "oder grün; die Sohle hält etwa tausend Kilometer. Für Straßen wäre ein leichterer Schuh besser.",
    "fr": "Les chaussures de randonnée imperméables pèsent 480 grammes et coûtent 129,95 €. L'été, "
    "on préfère un modèle plus léger ; où l'acheter ? La semelle, très solide, dure près de mille "
    "kilomètres. C'est déjà la troisième paire que j'achète, et ma sœur en est ravie.",
    "it": "Gli scarponi impermeabili pesano 480 grammi e costano 129,95 €. La qualità è ottima, "
    "però la misura è un po' piccola: perciò conviene prenderne una in più. La suola dura circa "
    "mille chilometri. Perché non c'è anche nel colore più scuro? Così com'è, va già benissimo.",
    "es": "Las botas de montaña impermeables pesan 480 gramos y cuestan 129,95 €. ¿Cuánto dura la "
    "suela? Unos mil kilómetros en caminos difíciles. El tamaño es pequeño, así que muchos eligen "
    "media talla más. ¡Envío gratis mañana! Mi compañero también está contento con su compra.",
}


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The source's own tokenizer: text to ids, and the ids around documents."""

    encode: Callable[[str], list[int]]
    bos_id: int | None
    eos_id: int | None
    special: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Source:
    """A source that can be run.

    Attributes:
        format: huggingface, gguf or meta.
        sizes: under the names of this project's `LlamaConfig`.
        tokens: its tokenizer.
        frequencies: of RoPE, [H / 2] float32, radians a position.
        run: (tokens, positions), both [R, T] int64 -> (normed hidden states [R, T, D] float32,
            and the residual stream: the embeddings, then after each attention and each MLP, 2 L + 1
            arrays [R, T, D]).
        project: hidden states [P, D] -> logits [P, V] float32.
    """

    format: str
    sizes: dict
    tokens: Tokens
    frequencies: np.ndarray
    run: Callable
    project: Callable


def write_reference(src: str | os.PathLike, dst: str | os.PathLike, top_k: int | None) -> None:
    """Runs the source and writes its answers.

    Args:
        src: Hugging Face directory, GGUF file, or directory with Meta's params.json.
        dst: the .npz file to make: `header` (JSON), `tokens` and `positions` [R, T], `lengths` [R],
            `frequencies` [H / 2], `residual_rms` [2 L + 1, R] (of the residual stream at the last
            position of each row), and of the P positions that are no padding, row by row, either `logits` [P, V] or `top_ids`
            and `top_logits` [P, k] with `rest` [P], the log-sum-exp of all the others.
        top_k: how many logits a position are kept; None keeps all.

    Raises:
        ValueError: if the source cannot be run or `dst` not be written; in one line.
    """
    src = Path(src)
    source = load_source(src)
    if top_k is not None and not 1 <= top_k < source.sizes["vocab_size"]:
        raise ValueError(
            f"--top-k: must be from 1 to {source.sizes['vocab_size'] - 1}, got {top_k}."
        )
    ids = {language: source.tokens.encode(text) for language, text in TEXTS.items()}
    rows = make_rows(ids, source.tokens.bos_id, source.sizes["max_seq_len"])
    arrays = _answer(source, rows, top_k)
    header = {
        "format": FORMAT,
        "source": {"name": src.name, "format": source.format, "files": _list_files(src)},
        "sizes": source.sizes,
        "tokenizer": {
            "bos_id": source.tokens.bos_id,
            "eos_id": source.tokens.eos_id,
            "special": source.tokens.special,
        },
        "texts": TEXTS,
        "ids": ids,
        "rows": [{"name": row["name"], "group": row["group"]} for row in rows],
        "top_k": top_k,
        "versions": _versions(),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
    }
    _write(Path(dst), header, arrays, compress=top_k is not None)


# --- the questions -------------------------------------------------------------------------------


def make_rows(ids: dict[str, list[int]], bos_id: int | None, max_seq_len: int) -> list[dict]:
    """Lays the texts out in rows, near the start and far from it.

    Far rows come in two kinds: all of it far away, and with jumps, where queries far away look at
    keys at the start. Only the second kind sees how RoPE treats far *relative* positions. A model
    whose context ends before 9,000 is asked at the last positions it has.

    Args:
        ids: of each text.
        bos_id: begins every row but one; None where the model has none.
        max_seq_len: of the model.

    Returns:
        Rows of `name`, `group` (short or far), `tokens` and `positions`.

    >>> [row["name"] for row in make_rows({"en": list(range(99))}, None, 1024)]
    ['en', '960 to 1023', '0, 512 and 1002 on']
    """
    size = min(ROW_TOKENS, max_seq_len)
    begin = [] if bos_id is None else [bos_id]
    rows = [_row(name, "short", (begin + text)[:size], range(size)) for name, text in ids.items()]
    if begin:
        rows.append(_row("en, without BOS", "short", ids["en"][:size], range(size)))
    texts = list(ids.values())
    ends = [min(max_seq_len, FARTHEST)]
    if ends[0] >= FAR + size:
        ends.insert(0, FAR + size)
    for number, end in enumerate(ends):
        text = (begin + texts[number % len(texts)])[:size]
        far = range(end - size, end)
        rows.append(_row(f"{far[0]} to {far[-1]}", "far", text, far))
        middle, third = (4000 if end == FAR + size else end // 2), size // 3
        jumps = [*range(third), *range(middle, middle + third)]
        jumps += range(end - (size - 2 * third), end)
        text = (begin + texts[(number + 2) % len(texts)])[:size]
        rows.append(_row(f"0, {middle} and {jumps[2 * third]} on", "far", text, jumps))
    return rows


def _row(name: str, group: str, tokens: list[int], positions) -> dict:
    return {
        "name": name,
        "group": group,
        "tokens": tokens,
        "positions": list(positions)[: len(tokens)],
    }


def _answer(source: Source, rows: list[dict], top_k: int | None) -> dict[str, np.ndarray]:
    lengths = np.array([len(row["tokens"]) for row in rows], np.int32)
    tokens, positions = (_pad([row[k] for row in rows]) for k in ("tokens", "positions"))
    hidden, residuals = source.run(tokens, positions)
    valid = np.arange(tokens.shape[1]) < lengths[:, None]
    last = [stream[np.arange(len(rows)), lengths - 1] for stream in residuals]
    arrays = {
        "tokens": tokens.astype(np.int32),
        "positions": positions.astype(np.int32),
        "lengths": lengths,
        "frequencies": source.frequencies,
        "residual_rms": np.array([np.sqrt(np.mean(x**2, axis=-1)) for x in last], np.float32),
    }
    logits = source.project(hidden[valid])
    return arrays | ({"logits": logits} if top_k is None else _keep_top(logits, top_k))


def _pad(rows: list[list[int]]) -> np.ndarray:
    # Padding stands behind, where no real position sees it.
    width = max(map(len, rows))
    return np.array([row + [0] * (width - len(row)) for row in rows], np.int64)


def _keep_top(logits: np.ndarray, top_k: int) -> dict[str, np.ndarray]:
    chosen = np.argsort(-logits, axis=-1, kind="stable")[:, :top_k]
    others = logits.astype(np.float64)
    np.put_along_axis(others, chosen, -np.inf, axis=-1)
    largest = others.max(axis=-1)
    rest = largest + np.log(np.exp(others - largest[:, None]).sum(axis=-1))
    small = np.uint16 if logits.shape[1] <= 2**16 else np.uint32
    return {
        "top_ids": chosen.astype(small),
        "top_logits": np.take_along_axis(logits, chosen, axis=-1),
        "rest": rest.astype(np.float32),
    }


# --- sources -------------------------------------------------------------------------------------


def load_source(src: Path) -> Source:
    """Opens what lies at `src`, whichever of the three formats it is.

    Raises:
        ValueError: if it is none of them or cannot be loaded, or torch or transformers is missing.
    """
    for name in ("torch", "transformers"):
        try:
            __import__(name)
        except ImportError as error:
            raise ValueError(
                f"{name}: must be installed to compute what {src} says, got none ({error}); install "
                "it, or compare with a stored reference (--write-reference, on a machine that has it)."
            ) from error
    load = _load_gguf
    if src.is_dir():
        load = _load_meta if (src / "params.json").is_file() else _load_huggingface
    elif not src.is_file():
        raise ValueError(f"{src}: must exist, got no such file or directory.")
    try:
        return load(src)
    except Exception as error:  # whatever the libraries raise for what they cannot read
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        kind = load.__name__.removeprefix("_load_")
        raise ValueError(f"{src}: must be a {kind} model that loads, got: {reason}") from error


def _load_huggingface(src: Path) -> Source:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(
        src,
        dtype=_stored_dtype(src),
        attn_implementation="eager",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    return _transformers_source("huggingface", model, _load_tokenizer(src))


def _load_gguf(src: Path) -> Source:
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    place = {"gguf_file": src.name, "local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(src.parent, **place)
    model = LlamaForCausalLM.from_pretrained(
        src.parent, dtype=torch.float32, attn_implementation="eager", **place
    )
    tokens = _wrap(tokenizer, tokenizer.bos_token_id, tokenizer.eos_token_id)
    return _transformers_source("gguf", model, tokens, _gguf_rope_factors(src))


def _load_tokenizer(src: Path) -> Tokens:
    from transformers import PreTrainedTokenizerFast

    # This class takes tokenizer.json as it is; others rebuild parts of it by their own rules.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        src, local_files_only=True, trust_remote_code=False
    )
    named = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    return _wrap(tokenizer, *(_document_id(src, kind, found) for kind, found in named.items()))


def _document_id(src: Path, kind: str, named: int | None) -> int | None:
    """Falls back on the ids of the model's configs where the tokenizer's names nothing."""
    if named is not None or f"{kind}_token" in _read_json(src / "tokenizer_config.json"):
        return named
    for file in ("generation_config.json", "config.json"):
        found = _read_json(src / file).get(f"{kind}_token_id")
        if found is not None:
            return found[0] if isinstance(found, list) else found
    return None


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _wrap(tokenizer, bos_id: int | None, eos_id: int | None) -> Tokens:
    special = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return Tokens(
        lambda text: tokenizer.encode(text, add_special_tokens=False), bos_id, eos_id, special
    )


def _stored_dtype(src: Path):
    """Returns the dtype of the weights as they lie, whatever config.json says; mixed: float32."""
    import safetensors
    import torch

    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    found = set()
    for path in src.glob("*.safetensors"):
        with safetensors.safe_open(path, framework="pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return names.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def _gguf_rope_factors(src: Path) -> np.ndarray | None:
    # llama.cpp writes Llama 3.1's scaling as one divisor a frequency; transformers passes over it.
    from gguf import GGUFReader

    tensors = [t for t in GGUFReader(src).tensors if t.name == "rope_freqs.weight"]
    return np.array(tensors[0].data, np.float32).ravel() if tensors else None


def _transformers_source(kind: str, model, tokens: Tokens, factors=None) -> Source:
    import torch

    config = model.eval().config
    # Anew, for loading in bfloat16 must not have touched it.
    rotary = model.model.rotary_emb = type(model.model.rotary_emb)(config)
    if factors is not None:
        rotary.inv_freq = rotary.inv_freq / torch.from_numpy(factors)
    head, embedding = model.lm_head.weight, model.model.embed_tokens.weight
    sizes = {
        "vocab_size": config.vocab_size,
        "embed_dim": config.hidden_size,
        "mlp_dim": config.intermediate_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        "max_seq_len": config.max_position_embeddings,
        "norm_eps": config.rms_norm_eps,
        "tied_embeddings": head.data_ptr() == embedding.data_ptr(),
    }
    residuals = _compute_in_float32(model)

    def run(tokens, positions):
        residuals.clear()
        with torch.no_grad():
            hidden = model.model(
                input_ids=torch.from_numpy(tokens),
                position_ids=torch.from_numpy(positions),
                # Given, for transformers takes jumps in the positions for separate documents.
                attention_mask=_causal_mask(tokens.shape[1]).expand(len(tokens), 1, -1, -1),
                use_cache=False,
            ).last_hidden_state
        return hidden.numpy(), residuals

    def project(hidden):
        with torch.no_grad():
            return model.lm_head(torch.from_numpy(hidden)).numpy()

    frequencies = rotary.inv_freq.float().numpy().copy()
    return Source(kind, sizes, tokens, frequencies, run, project)


def _causal_mask(length: int):
    import torch

    return torch.full((1, 1, length, length), torch.finfo(torch.float32).min).triu(1)


def _compute_in_float32(model) -> list[np.ndarray]:
    """Widens each layer while it runs, so that the model is held once, in its own dtype.

    Returns:
        A list that every run fills with the residual stream, as `Source.run` gives it.
    """
    residuals: list[np.ndarray] = []

    def keep(x) -> None:
        residuals.append((x[0] if isinstance(x, tuple) else x).numpy())
        if len(residuals) > 1 and len(residuals) % 2:
            _say_progress(len(residuals) // 2, len(model.model.layers))

    def widen_embeddings(module, args, out):
        keep(out.float())
        return out.float()

    model.model.embed_tokens.register_forward_hook(widen_embeddings)
    for layer in model.model.layers:
        _widen_while_running(layer)
        layer.post_attention_layernorm.register_forward_pre_hook(lambda module, args: keep(args))
        layer.register_forward_hook(lambda module, args, out: keep(out))
    _widen_while_running(model.model.norm)
    _widen_while_running(model.lm_head)
    return residuals


def _widen_while_running(module) -> None:
    stored = {}

    def widen(module, args) -> None:
        for name, weight in module.named_parameters():
            stored[name] = weight.data
            weight.data = weight.data.float()

    def restore(module, args, out) -> None:
        for name, weight in module.named_parameters():
            weight.data = stored.pop(name)

    module.register_forward_pre_hook(widen)
    module.register_forward_hook(restore)


def _say_progress(done: int, total: int) -> None:
    print(f"layer {done} of {total}", file=sys.stderr, flush=True)


def _load_meta(src: Path) -> Source:
    from ellama_jax.weights.reference_meta import MetaModel, read_tokenizer

    model = MetaModel(src, _say_progress)
    if (src / "tokenizer.json").is_file():
        tokens = _load_tokenizer(src)
    else:
        tokens = Tokens(*read_tokenizer(src))
    return Source("meta", model.sizes, tokens, model.frequencies, model.run, model.project)


# --- the file ------------------------------------------------------------------------------------


def _list_files(src: Path) -> list[dict]:
    names = ("*.safetensors", "config.json", "params.json", "consolidated.*.pth", "tokenizer.*")
    paths = [src] if src.is_file() else sorted(p for name in names for p in src.glob(name))
    return [{"name": p.name, "bytes": p.stat().st_size, "sha256": _sha256(p)} for p in paths]


def _sha256(path: Path) -> str | None:
    if path.stat().st_size > HASHED_BYTES:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }


def _write(dst: Path, header: dict, arrays: dict, *, compress: bool) -> None:
    content = np.frombuffer(json.dumps(header, ensure_ascii=False).encode(), np.uint8)
    partial = dst.with_name(f".{dst.name}.partial-{os.getpid()}")
    save = np.savez_compressed if compress else np.savez
    try:
        with partial.open("wb") as file:
            save(file, header=content, **arrays)
        os.replace(partial, dst)
    finally:
        partial.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Runs this file as a program; a mistake is one line on stderr and exit status 2."""
    parser = argparse.ArgumentParser(
        description="Write what a Llama model says to the test rows of `ellama verify`.",
        epilog="example: python reference.py models/Llama-3.1-8B ref.npz --top-k 64",
    )
    parser.add_argument("src", help="Hugging Face directory, GGUF file or Meta directory")
    parser.add_argument("dst", help=".npz file to make")
    parser.add_argument("--top-k", type=int, help="keep so many logits a position; all by default")
    args = parser.parse_args(argv)
    try:
        write_reference(args.src, args.dst, args.top_k)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
