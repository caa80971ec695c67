"""The options of `ellama merge`: from words to a recipe.

Owns the parser and which options go together; what the numbers must be, merge/verb.py says.
"""

import argparse

import ml_dtypes
import numpy as np

from ellama_jax.merge.methods import METHODS, find_method
from ellama_jax.merge.stream import Recipe
from ellama_jax.weights.alphas import Alphas, parse_alphas_by_part

DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
_EXAMPLES = """\
examples:
  the way back to the base, 30 % of the way to the adapted model:
    ellama merge --base runs/base --adapted runs/a/checkpoints --alpha 0.3 --out runs/merged
  a gradient over depth with the embedding left alone, as a Hugging Face directory:
    ellama merge --base runs/base --adapted runs/a/checkpoints --alpha 0,0.5,1 --alpha-of embed=0 \\
      --format huggingface --out exports/merged
  two specialists on one base, the fifth of each that changed most:
    ellama merge --method ties --density 0.2 --base runs/base --model runs/shop --weight 1 \\
      --model models/medical --weight 0.5 --out runs/both

methods:
"""


def parse_arguments(argv: list[str]) -> tuple[Recipe, list[str], argparse.Namespace]:
    """Reads the options.

    Returns:
        the recipe, the models beside the base, and the options as given.

    Raises:
        ValueError: for options that do not go together, or that the method does not take.
    """
    args = _make_parser().parse_args(argv)
    method = find_method(args.method)
    if (args.adapted is None) == (not args.model):
        got = "both" if args.model else "neither"
        raise ValueError(f"--adapted: must be given, or --model once or more, got {got}.")
    if args.adapted is not None and args.base is None:
        raise ValueError("--base: must be given with --adapted, got none.")
    if args.method == "linear" and args.base is not None and args.adapted is None:
        raise ValueError(
            "--base: must be left out of a weighted mean of --model, got it; name it as a --model."
        )
    models = args.model or [args.adapted]
    return Recipe(args.method, _weights(args, method), args.density, args.seed), models, args


def _weights(args: argparse.Namespace, method) -> tuple[Alphas, ...]:
    if not method.weights:
        for option in ("alpha", "alpha_of", "weight"):
            if getattr(args, option):
                name = option.replace("_", "-")
                raise ValueError(f"--{name}: must be left out with {args.method}, got it.")
        return ()
    if args.adapted is not None:
        if args.weight:
            raise ValueError("--weight: must go with --model, got it with --adapted; use --alpha.")
        if args.alpha is None:
            raise ValueError("--alpha: must be given with --adapted, got none; as --alpha 0.3.")
        return (parse_alphas_by_part(args.alpha, args.alpha_of or ()),)
    for option in ("alpha", "alpha_of"):
        if getattr(args, option):
            name = option.replace("_", "-")
            raise ValueError(
                f"--{name}: must go with --adapted, got it with --model; use --weight."
            )
    weights = args.weight or []
    if len(weights) != len(args.model):
        raise ValueError(
            f"--weight: must be given once for each --model ({len(args.model)}), got {len(weights)}."
        )
    return tuple(_parse_weight(text) for text in weights)


def _parse_weight(text: str) -> Alphas:
    depth, *parts = text.split() or [""]
    try:
        return parse_alphas_by_part(depth, parts)
    except ValueError as error:
        message = str(error).replace("--alpha-of", "--weight").replace("--alpha", "--weight")
        raise ValueError(message) from None


def _make_parser() -> argparse.ArgumentParser:
    methods = "\n".join(f"  {name:<16} {method.what}" for name, method in METHODS.items())
    parser = argparse.ArgumentParser(
        prog="ellama merge",
        description="Merge models into one more, in little memory whatever their size and number.\n"
        "Each is a checkpoint root, ROOT/<step>, or a Hugging Face directory.",
        epilog=_EXAMPLES + methods,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", help="what the others started from")
    parser.add_argument("--adapted", help="the model after training")
    parser.add_argument("--alpha", help="0 is base, 1 is adapted; 0,0.5,1 is a gradient over depth")
    parser.add_argument(
        "--alpha-of",
        action="append",
        metavar="PART=ALPHA",
        help="another alpha for embed, head, norms, attn, mlp, wq ..., layers.I or layers.I-J",
    )
    parser.add_argument(
        "--model", action="append", help="one of several models; give --weight for each"
    )
    parser.add_argument(
        "--weight",
        action="append",
        help='of the --model in the same place: 0.5, or as in "0,0.5,1 embed=0"',
    )
    parser.add_argument("--out", required=True, help="what to make")
    parser.add_argument("--method", default="linear", help="see below (default %(default)s)")
    parser.add_argument("--density", type=float, help="share of each model's changes that is kept")
    parser.add_argument("--seed", type=int, help="of dare's masks (default 0)")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of the result; the widest of the inputs' by default"
    )
    parser.add_argument(
        "--format",
        default="orbax",
        choices=("orbax", "huggingface"),
        help="of the result (default %(default)s)",
    )
    parser.add_argument(
        "--extrapolate", action="store_true", help="take alphas and weights outside 0 to 1"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is at OUT")
    parser.add_argument(
        "--allow-unverified", action="store_true", help="take inputs that failed `ellama verify`"
    )
    return parser
