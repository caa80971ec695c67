"""Owns scorecards laid side by side by the verb `evaluate`: what is printed, written and refused.

Changes and the gate are `retention`'s, their words `card_text`'s.
"""

import argparse
import sys
from collections.abc import Sequence

from ellama_jax.config import (
    GATE_ACTIONS,
    GATE_FAILS_WHEN,
    GateConfig,
    check_gate,
)
from ellama_jax.core.exits import EXIT_GATE
from ellama_jax.core.paths import as_path, write_whole
from ellama_jax.evaluate import retention
from ellama_jax.evaluate.card_text import format_markdown, say_comparison, say_gate
from ellama_jax.evaluate.long_context import format_long_context
from ellama_jax.evaluate.score_table import format_table


def lay_side_by_side(
    cards: Sequence[dict], gate: GateConfig, *, markdown_path: str | None = None
) -> tuple[list[dict], list[dict]]:
    """Prints scorecards, changes against the first and the gate; writes Markdown if asked.

    Returns:
        The comparison and the gate's verdict of every card but the first.
    """
    base, others = cards[0], [card for card in cards[1:] if card["results"]]
    comparisons = [retention.compare(base, card) for card in others] if base["results"] else []
    gates = [retention.check_gate(comparison, gate) for comparison in comparisons]
    if any(card["results"] for card in cards):
        print(format_table(cards))
    for comparison, verdict in zip(comparisons, gates, strict=True):
        print(f"\n{say_comparison(comparison)}")
        if comparison["left_out"]:
            print(
                f"{comparison['left_out']} results stand on one side only and are not compared; "
                "gains in the table above are of all that each model was asked."
            )
        if gate.action != "off":
            print(say_gate(verdict))
    if any(card.get("long_context") for card in cards):
        print(f"\n{format_long_context(cards)}")
    if markdown_path:
        write_whole(as_path(markdown_path), format_markdown(cards, comparisons, gates))
    return comparisons, gates


def leave_if_refused(verdicts: Sequence[dict], gate: GateConfig) -> None:
    """Exits with status 3 where a gate that is to stop was not passed, or cannot tell.

    Raises:
        ValueError: if it could not check anything, which is no pass.
    """
    if gate.action != "stop":
        return
    if any(verdict["passed"] is False for verdict in verdicts):
        print("ellama evaluate: stopped by the retention gate.", file=sys.stderr)
        sys.exit(EXIT_GATE)
    if any(verdict["passed"] is None and verdict["checks"] for verdict in verdicts):
        print(
            "ellama evaluate: the retention gate cannot tell: ask more questions.", file=sys.stderr
        )
        sys.exit(EXIT_GATE)
    if not verdicts or any(verdict["passed"] is None for verdict in verdicts):
        raise ValueError(
            "--gate: stop must have general questions or texts that both models were asked, got "
            "none; score mmlu or bits_per_byte."
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that compare."""
    rules = GateConfig()
    parser.add_argument("--base", help="scorecard of the base to compare with")
    parser.add_argument(
        "--scorecards",
        nargs="+",
        metavar="FILE",
        help="lay scorecards side by side instead of scoring; the first is the base",
    )
    parser.add_argument("--markdown", help="file to write the comparison to, for a model card")
    parser.add_argument("--gate", choices=GATE_ACTIONS, default=rules.action,
                        help=f"what a broken rule does; stop: exit status {EXIT_GATE}")  # fmt: skip
    for key, what in (
        ("general_mean", "of general accuracy"),
        ("language", "of general accuracy in each language"),
        ("bits_per_byte", "of general bits per byte in each language"),
    ):
        default = getattr(rules, key)
        parser.add_argument(f"--gate-{key.replace('_', '-')}", type=float, default=default,
                            help=f"relative change allowed {what} (default {default:g})")  # fmt: skip
    parser.add_argument("--gate-fails-when", choices=GATE_FAILS_WHEN, default=rules.fails_when,
                        help="the interval, the change, or any of the interval is beyond")  # fmt: skip


def check_arguments(args: argparse.Namespace) -> None:
    """Raises a ValueError for options that cannot stand together, or alone."""
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit: must be at least 1, got {args.limit}.")
    scoring = {"base": args.base, "tasks": args.tasks, "long-context": args.long_context}
    for name, given in scoring.items():
        if args.scorecards and given:
            raise ValueError(
                f"--{name}: must not stand beside --scorecards, which scores nothing, got {given}."
            )
    if args.max_length is not None and not args.long_context:
        raise ValueError(
            f"--max-length: must stand beside --long-context, got {args.max_length} alone."
        )
    if bool(args.checkpoint) == bool(args.scorecards):
        raise ValueError(
            "--checkpoint: must be given, or --scorecards to compare some, got "
            f"{'both' if args.checkpoint else 'neither'}."
        )


def gate_of(args: argparse.Namespace) -> GateConfig:
    """Returns the rules that were given."""
    gate = GateConfig(
        args.gate, args.gate_general_mean, args.gate_language, args.gate_bits_per_byte,
        args.gate_fails_when,
    )  # fmt: skip
    check_gate(gate, "--gate-")
    if gate.action == "stop" and not (args.base or args.scorecards):
        raise ValueError(
            "--gate: stop needs a base to compare with, got none; give --base or --scorecards."
        )
    return gate
