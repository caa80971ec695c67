"""How the time of every function that reads a record's text grows with texts made to be slow.

    python tools/benchmarks/hostile_text.py [--only NAME] [--sizes 10000 100000 1000000]

Each text repeats a small piece after "Tel. "; each function reads it at growing lengths. Printed for a function is
its worst text: seconds at each length, and the exponent p of time ~ length ** p between the last two
lengths that took long enough to be timed. 1 is linear, 2 quadratic.
"""

import argparse
import contextlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ellama_jax.corpus.records import Damaged, read_csv, read_json_array, read_json_lines

PIECES = {
    "chained phones": "0301234567, ", "digits": "7", "phones": "+49 30 1234567 ", "grouped digits": "212-736-5000-", "spaced digits": "4 0 0 ",
    "fractions": "1/", "decimals": "1.", "commas": "1,", "prices": "1.234,50 € ", "ranges": "1 - ",
    "spaces": " ", "no-break spaces": "\u00a0", "tabs": "\t", "lines": "\n", "spaced lines": " \n", "returns": "\r",
    "letters": "a", "words": "lorem ", "capitals": "Ab ", "codes": "AB12-", "addresses": "Am Weg 1 ",
    "streets": "12 Main Main ", "at": "@", "mails": "a@b.", "at in words": "a (at) b ", "dots": "a.", "handles": "@ab ",
    "urls": "http://a/", "colons": "a:", "IPv6": "ab:", "IBANs": "DE89 3704 0044 ", "open tags": "<b", "tags": "<b>",
    "lists": "<ul><li>", "divs": "<div>", "attributes": "<a b='", "quotes": "\"'", "scripts": "<script>",
    "comments": "<!--", "entities": "&amp;", "double entities": "&amp;amp;", "tables": "<table><tr><td>",
    "headers": "<header><ul><a>x</a>", "links": "<ul><li><a href=x>x</a>", "brackets": "[(", "closing": ")]",
    "combining": "a\u0301", "joiners": "\u200d", "emoji": "👩‍👩‍👧", "full width": "＠１", "stars": "★", "bullets": "• ",
    "dashes": "-", "underscores": "_", "sentences": "A. ", "questions": "?!", "pipes": "a | ", "one quote": "'a ",
    "backslashes": "\\", "braces": "{\"a\":", "arrays": "[", "percents": "%", "units": "10 x ", "nulls": "\0", "Thai": "กา",
    "Chinese": "语", "Arabic": "ال", "key lines": "Color: red\n", "same lines": "the same line\n", "labels": "Price: \n",
}  # fmt: skip
_SHORTEST_SECS = 0.02  # what is faster says nothing of growth
_LONGEST_SECS = 60.0


def functions(folder: Path) -> Mapping[str, Callable[[str], object]]:
    """Returns what reads a record's text, by name; each takes the text alone."""
    from ellama_jax.corpus import (
        classifier,
        contamination,
        duplicates,
        language,
        listings,
        mapping,
        markup,
        prices,
        privacy,
        quality,
        reviews,
        splits,
        templates,
        variants,
        wording,
    )  # fmt: skip
    from ellama_jax.corpus.curation_records import split_sentences
    from ellama_jax.evaluate import answers
    from ellama_jax.evaluate.tasks import drafts
    from ellama_jax.tokens import tokenizer as tokenizers

    trained = tokenizers.train_byte_bpe(["lorem ipsum dolor sit amet 123 "] * 20, 300)
    last = trained.get_vocab_size() - 1
    tokenizers.save_tokenizer(folder / "tokenizer", trained, last - 1, last)
    tokenizer = tokenizers.load_tokenizer(folder / "tokenizer")
    index = contamination.build_index(
        [contamination.EvalText("set", "1", "the quick brown fox jumps over the lazy dog " * 4)]
    )
    paths = mapping.parse_mapping({"title": "a.b", "description": "c"})

    def listing(**values) -> dict:
        record = {"title": "Lamp", "language": "en", "id": "1", **values}
        return listings.normalise_listing(record, source="shop")

    def clean(**values) -> object:
        cleaned, _ = listings.clean_listing(listing(**values))
        text = templates.listing_to_document(cleaned, seed=0)
        return (
            templates.parse_document(text, "en"),
            splits.identifiers(cleaned),
            variants.product_of(cleaned),
        )

    def review(**values) -> object:
        record = {
            "rating": 4,
            "text": "fine",
            "title": "good",
            "language": "en",
            "product_title": "Lamp",
            **values,
        }
        return reviews.review_to_document(reviews.normalise_review(record, source="shop"), seed=0)

    def read(reader: Callable, text: str) -> object:
        with open(folder / "records", "wb") as file:
            file.write(text.encode())
        with open(folder / "records", "rb") as file:
            return list(reader(file))

    return {
        "mask_private en": lambda text: privacy.mask_private(text, "en"),
        "mask_private de": lambda text: privacy.mask_private(text, "de"),
        "mask_name": lambda text: privacy.mask_name(text, "Lamp House", "seller", "en"),
        "mask_name, long name": lambda text: privacy.mask_name("Lamp", text, "seller", "en"),
        "normalise_price": lambda text: prices.normalise_price(text, None, "en"),
        "parse_price": lambda text: prices.parse_price(text, "en"),
        "localise_units": lambda text: prices.localise_units(text, "de"),
        "strip_markup": markup.strip_markup,
        "page_text": quality.page_text,
        "judge_quality prose": lambda text: quality.judge_quality(text, "en"),
        "judge_quality shop": lambda text: quality.judge_quality(text, "de", "shop"),
        "identify_language": language.identify_language,
        "language_shares": language.language_shares,
        "keep_language": lambda text: language.keep_language(text, "en"),
        "a listing's title": lambda text: clean(title=text),
        "a listing's description": lambda text: clean(description=text),
        "a listing's aspects": lambda text: clean(aspects={text: text, "Color": text}),
        "a listing's category": lambda text: clean(category=text),
        "a listing's price": lambda text: clean(price=text, currency="EUR"),
        "a listing's brand, seller": lambda text: clean(
            brand=text, seller=text, description="Lamp " * 100
        ),
        "a listing's ids": lambda text: clean(gtin=text, mpn=text, sku=text),
        "a review's text": lambda text: review(text=text),
        "a review's title": lambda text: review(title=text, product_title=text),
        "a review's rating": lambda text: review(rating=text),
        "parse_document": lambda text: templates.parse_document(text, "en"),
        "parse_review": lambda text: reviews.parse_review(text, "en"),
        "split_sentences": split_sentences,
        "shingle_hashes": lambda text: duplicates.shingle_hashes(text, 5),
        "exact_key": duplicates.exact_key,
        "contamination": lambda text: index.match(text),
        "title_codes": splits.title_codes,
        "normalise_gtin": splits.normalise_gtin,
        "visible_text": classifier.visible_text,
        "map_fields": lambda text: mapping.map_fields({"a": {"b": text}, "c": text}, paths),
        "one_line": wording.one_line,
        "is_empty_value": lambda text: wording.is_empty_value(text, "en"),
        "read_json_lines": lambda text: read(
            lambda file: read_json_lines(file, "x"), json.dumps({"text": text})
        ),
        "read_json_lines, raw": lambda text: read(lambda file: read_json_lines(file, "x"), text),
        "read_json_array": lambda text: read(
            lambda file: read_json_array(file, "x"), json.dumps([{"text": text}])
        ),
        "read_json_array, raw": lambda text: read(lambda file: read_json_array(file, "x"), text),
        "read_csv": lambda text: read(lambda file: read_csv(file, "x"), f"a,b\n{text},1\n"),
        "encode": tokenizer.encode,
        "encode_words": lambda text: tokenizer.encode_words([text]),
        "score a written value": lambda text: answers.same_value(text, "blue"),
        "score a written price": lambda text: answers.price_error(text, 10.0, ["$"]),
        "normalise_value": answers.normalise_value,
        "rouge_l": lambda text: answers.rouge_l(text, "a blue lamp"),
        "is_named": lambda text: drafts.is_named("blue", text),
        "is_told": lambda text: drafts.is_told("10 cm", text),
    }


def time_growth(function: Callable[[str], object], piece: str, sizes: list[int]) -> list[float]:
    """Returns the seconds at each size, up to the first that takes too long."""
    times: list[float] = []
    for size in sizes:
        text = ("Tel. " + piece * (size // len(piece) + 1))[:size]
        if len(times) > 1 and times[-1] > 1 and times[-1] ** 2 / times[-2] > _LONGEST_SECS:
            break
        began = time.perf_counter()
        # What is refused is fine; the time to say so counts too.
        with contextlib.suppress(ValueError, RecursionError, Damaged):
            function(text)
        times.append(time.perf_counter() - began)
    return times


def exponent(times: list[float], sizes: list[int]) -> float:
    """Returns p of time ~ size ** p between the last two sizes; 1 where all is too fast to tell."""
    if len(times) < 2 or times[-1] < _SHORTEST_SECS:
        return 1.0
    before, after = max(times[-2], 1e-5), times[-1]
    return math.log(after / before) / math.log(sizes[len(times) - 1] / sizes[len(times) - 2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--only", default="", help="functions whose name holds this")
    args = parser.parse_args()
    sizes = [f"{size // 1000:,} kB, s" for size in args.sizes]
    print(f"| function | worst text | {' | '.join(sizes)} | p |\n|{'---|' * (len(sizes) + 3)}")
    with tempfile.TemporaryDirectory() as folder:
        for name, function in functions(Path(folder)).items():
            if args.only not in name:
                continue
            with contextlib.suppress(ValueError, Damaged):
                function("Lamp")  # tables and models are read once
            found = {
                text: time_growth(function, piece, args.sizes) for text, piece in PIECES.items()
            }
            # Of those that were given up the earliest, then the slowest.
            worst = min(found, key=lambda text: (len(found[text]), -found[text][-1]))
            times = found[worst]
            shown = [f"{secs:.3f}" for secs in times] + ["-"] * (len(args.sizes) - len(times))
            print(
                f"| {name} | {worst} | {' | '.join(shown)} | {exponent(times, args.sizes):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
