"""Owns the analysis of long contexts: perplexity by position, and needles found in long text.

Both ask for log-likelihoods only (`scorer`), so nothing is generated and every base model can be
asked. The scorer's memory grows with the length, never with its square.

Perplexity by position: the first `max_length` tokens of long texts, in intervals that double. An
interval is one request (what stands before it is the context), so a text costs about twice its
length. Only texts that fill every interval count: all positions are then of the same texts.

Needle retrieval (after the "needle in a haystack" of G. Kamradt, 2023, and RULER, arXiv 2404.06654):
a sentence that gives a city a secret word stands at some depth of general text, and the question at
the end is answered by the most probable of eight words, per byte. Which of the eight is right is
drawn, so a model that does not look stands at 1/8.
"""

import collections
import math
import random
import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from ellama_jax.evaluate import scorer
from ellama_jax.model.presets import LlamaConfig
from ellama_jax.tokens.tokenizer import Tokenizer

FIRST_END = 128  # tokens in the first interval
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENGTHS = 4  # of haystacks: max_length, its half, ...
NEEDLES = 4  # a language, length and depth
_NUM_CHOICES = 8
# The needle and the question, which begins its answer with the needle's own words.
_SENTENCES = {
    "en": ("The secret word of the city of {city} is {word}.",
           "Question: What is the secret word of the city of {city}?\n"
           "Answer: The secret word of the city of {city} is"),
    "de": ("Das Geheimwort der Stadt {city} lautet {word}.",
           "Frage: Wie lautet das Geheimwort der Stadt {city}?\n"
           "Antwort: Das Geheimwort der Stadt {city} lautet"),
    "fr": ("Le mot secret de la ville de {city} est {word}.",
           "Question : Quel est le mot secret de la ville de {city} ?\n"
           "Réponse : Le mot secret de la ville de {city} est"),
    "it": ("La parola segreta della città di {city} è {word}.",
           "Domanda: Qual è la parola segreta della città di {city}?\n"
           "Risposta: La parola segreta della città di {city} è"),
    "es": ("La palabra secreta de la ciudad de {city} es {word}.",
           "Pregunta: ¿Cuál es la palabra secreta de la ciudad de {city}?\n"
           "Respuesta: La palabra secreta de la ciudad de {city} es"),
}  # fmt: skip
_CITIES = {
    "en": "London Vienna Lisbon Athens Cairo Oslo Warsaw Prague Dublin Madrid",
    "de": "London Wien Lissabon Athen Kairo Oslo Warschau Prag Dublin Madrid",
    "fr": "Londres Vienne Lisbonne Athènes Bruxelles Oslo Varsovie Prague Dublin Madrid",
    "it": "Londra Vienna Lisbona Atene Bruxelles Oslo Varsavia Praga Dublino Madrid",
    "es": "Londres Viena Lisboa Atenas Bruselas Oslo Varsovia Praga Dublín Madrid",
}
_WORDS = {
    "en": "umbrella violin cherry lantern saddle pepper harbour feather anchor blanket candle ladder",
    "de": "Regenschirm Geige Kirsche Laterne Sattel Pfeffer Hafen Feder Anker Decke Kerze Leiter",
    "fr": "parapluie violon cerise lanterne selle poivre port plume ancre couverture bougie échelle",
    "it": "ombrello violino ciliegia lanterna sella pepe porto piuma ancora coperta candela scala",
    "es": "paraguas violín cereza linterna silla pimienta puerto pluma ancla manta vela escalera",
}
LANGUAGES = tuple(_SENTENCES)


def measure(
    params: dict,
    config: LlamaConfig,
    tokenizer: Tokenizer,
    texts: Sequence[dict],
    *,
    max_length: int | None = None,
    seed: int = 0,
    title: str = "long context",
    **options,
) -> dict:
    """Measures a model on long held-out texts.

    Args:
        params, config, tokenizer: the model.
        texts: documents (dicts of text, domain, language), long ones among them.
        max_length: tokens, BOS and all; None is the model's maximum.
        seed: of cities, words and places of needles.
        title: words for the progress bar.
        **options: as for `scorer.score`.

    Returns:
        {"max_length", "positions": [{domain, language, start, end, nats_per_token, stderr,
        perplexity, n, nats, ids}], "needles": [{language, length, depth, value, stderr, chance, n,
        correct, ids}]}. `start` to `end` counts the tokens before the predicted one, BOS not.

    Raises:
        ValueError: if the length is not the model's, or no text is as long.
    """
    max_length = config.max_seq_len if max_length is None else max_length
    if not 2 * FIRST_END <= max_length <= config.max_seq_len:
        raise ValueError(
            f"--max-length: must lie between {2 * FIRST_END} tokens and the model's "
            f"{config.max_seq_len}, got {max_length}."
        )
    prefix = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    token_lists = tokenizer.encode_batch([text["text"] for text in texts])
    longest = max((len(tokens) for tokens in token_lists), default=0)
    if longest < max_length:
        raise ValueError(
            f"--long-context: must hold a text of {max_length} tokens, the longest has {longest}; "
            f"give longer ones, or --max-length {longest}."
        )
    stretches, owners = _stretches(token_lists, prefix, interval_ends(max_length))
    items = make_needles(texts, tokenizer, max_length, prefix, seed)
    requests = [*stretches, *(scorer.Request(i["context_ids"], i["choices_ids"]) for i in items)]
    options["compute_dtype"] = jnp.dtype(options.get("compute_dtype", "float32"))
    scores = scorer.score(params, config, requests, title=title, **options)
    count = len(stretches)
    return {
        "max_length": max_length,
        "positions": _position_results(texts, owners, scores[:count]),
        "needles": _needle_results(items, scores[count:]),
    }


def interval_ends(max_length: int) -> list[int]:
    """Returns where intervals of positions end; each is as long as all before it.

    >>> interval_ends(1024), interval_ends(700)
    ([128, 256, 512, 1024], [128, 256, 512, 700])
    """
    ends = [FIRST_END]
    while ends[-1] < max_length:
        ends.append(min(2 * ends[-1], max_length))
    return ends


def _stretches(token_lists, prefix: int, ends: Sequence[int]) -> tuple[list, list]:
    """Returns a request an interval of every text that fills all, and (text, start, end) of each."""
    requests, owners = [], []
    for number, tokens in enumerate(token_lists):
        if len(tokens) < ends[-1]:
            continue
        for start, end in zip([0, *ends], ends, strict=False):
            requests.append(scorer.Request([prefix, *tokens[:start]], [tokens[start:end]]))
            owners.append((number, start, end))
    return requests, owners


def _position_results(texts, owners, scores) -> list[dict]:
    groups = collections.defaultdict(list)
    for (number, start, end), score in zip(owners, scores, strict=True):
        text = texts[number]
        nats = -float(score.log_probs[0])
        groups[text["domain"], text["language"], start, end].append((number, nats))
    results = []
    for (domain, language, start, end), members in sorted(groups.items()):
        nats = np.array([value for _, value in members])
        mean = float(nats.mean()) / (end - start)
        error = None
        if len(nats) > 1:
            error = float(nats.std(ddof=1)) / (end - start) / math.sqrt(len(nats))
        results.append({
            "domain": domain, "language": language, "start": start, "end": end,
            "nats_per_token": mean, "stderr": error, "perplexity": math.exp(mean), "n": len(nats),
            "nats": nats.tolist(), "ids": [number for number, _ in members],
        })  # fmt: skip
    return results


def make_needles(
    texts: Sequence[dict], tokenizer: Tokenizer, max_length: int, prefix: int, seed: int
) -> list[dict]:
    """Hides needles in general text: `NEEDLES` a language, length and depth.

    A haystack is sentences of the texts of one language from a drawn place on (round the end to
    the beginning, as often as it takes), so many that needle, question and answer just fit.

    Returns:
        Dicts of id, language, length, depth, answer, choices (texts), choices_ids and context_ids.
    """
    lengths = sorted({max_length >> halvings for halvings in range(LENGTHS)})
    lengths = [length for length in lengths if length >= FIRST_END]
    items = []
    for language in LANGUAGES:
        sentences = [
            sentence
            for text in texts
            if text["language"] == language
            for sentence in split_sentences(text["text"])
        ]
        if not sentences:
            continue
        encoded = tokenizer.encode_batch([f"{sentence} " for sentence in sentences])
        for length in lengths:
            for depth in DEPTHS:
                for number in range(NEEDLES):
                    name = f"needle/{language}/{length}/{depth:g}/{number}"
                    item = _make_needle(
                        tokenizer, encoded, language, length, depth, prefix,
                        random.Random(f"{seed}/{name}"),
                    )  # fmt: skip
                    items.append({"id": name, **item})
    return items


def _make_needle(tokenizer, encoded, language, length, depth, prefix, rng) -> dict:
    city = rng.choice(_CITIES[language].split())
    choices = rng.sample(_WORDS[language].split(), _NUM_CHOICES)
    answer = rng.randrange(_NUM_CHOICES)
    sentence, question = _SENTENCES[language]
    needle = tokenizer.encode(sentence.format(city=city, word=choices[answer]) + " ")
    asked = tokenizer.encode("\n\n" + question.format(city=city))
    answers = [tokenizer.encode(f" {choice}") for choice in choices]
    room = length - 1 - len(needle) - len(asked) - max(map(len, answers))
    hay, at = [], rng.randrange(len(encoded))
    while room > 0:
        taken = encoded[at % len(encoded)][:room]  # the last one may be cut
        hay.append(taken)
        room, at = room - len(taken), at + 1
    place = _nearest_boundary(hay, depth)
    before, after = (sum(part, []) for part in (hay[:place], hay[place:]))
    return {
        "language": language, "length": length, "depth": depth, "answer": answer,
        "choices": choices, "choices_ids": answers,
        "context_ids": [prefix, *before, *needle, *after, *asked],
    }  # fmt: skip


def _nearest_boundary(hay: Sequence[Sequence[int]], depth: float) -> int:
    """Returns before which sentence a share `depth` of the tokens is past.

    >>> [_nearest_boundary([[1] * 10, [1] * 30, [1] * 10], depth) for depth in (0, 0.4, 0.85, 1)]
    [0, 1, 2, 3]
    """
    past = np.cumsum([0, *map(len, hay)])
    return int(np.argmin(np.abs(past - depth * past[-1])))


def split_sentences(text: str) -> list[str]:
    """Splits a text where a sentence or a line ends.

    >>> split_sentences("One. Two!  Three\\nfour")
    ['One.', 'Two!', 'Three', 'four']
    """
    return [part for part in re.split(r"(?<=[.!?])\s+|\s*\n\s*", text.strip()) if part]


def _needle_results(items, scores) -> list[dict]:
    groups = collections.defaultdict(list)
    for item, score in zip(items, scores, strict=True):
        sizes = np.array([len(choice.encode()) for choice in item["choices"]])
        found = int(np.argmax(score.log_probs / sizes))
        groups[item["language"], item["length"], item["depth"]].append(
            (int(found == item["answer"]), item["id"])
        )
    results = []
    for (language, length, depth), members in groups.items():
        correct = [right for right, _ in members]
        value, count = float(np.mean(correct)), len(correct)
        results.append({
            "language": language, "length": length, "depth": depth, "value": value,
            "stderr": math.sqrt(value * (1 - value) / (count - 1)) if count > 1 else None,
            "chance": 1 / _NUM_CHOICES, "n": count, "correct": correct,
            "ids": [name for _, name in members],
        })  # fmt: skip
    return results


def needle_means(result: dict, key: str) -> dict:
    """Averages needle retrieval by `length`, `depth` or `language`, all cells alike."""
    groups = collections.defaultdict(list)
    for row in result["needles"]:
        groups[row[key]].append(row["value"])
    return {name: float(np.mean(values)) for name, values in sorted(groups.items())}


def position_means(result: dict) -> dict[tuple[int, int], float]:
    """Returns nats a token by interval, all texts alike."""
    groups = collections.defaultdict(lambda: [0.0, 0])
    for row in result["positions"]:
        total = groups[row["start"], row["end"]]
        total[0] += sum(row["nats"])
        total[1] += row["n"] * (row["end"] - row["start"])
    return {interval: nats / tokens for interval, (nats, tokens) in sorted(groups.items())}


def format_long_context(cards: Sequence[dict]) -> str:
    """Lays the long contexts of scorecards side by side; the first is the base."""
    cards = [card for card in cards if card.get("long_context")]
    names = [card["model"] for card in cards]
    width = max(10, *(len(name) for name in names))
    lines = [f"{'perplexity by position':<24}" + "".join(f"  {name:>{width}}" for name in names)]
    means = [position_means(card["long_context"]) for card in cards]
    for interval in means[0]:
        cells = [f"{math.exp(m[interval]):.3f}" if interval in m else "-" for m in means]
        label = f"{interval[0]} to {interval[1]}"
        lines.append(f"  {label:<22}" + "".join(f"  {cell:>{width}}" for cell in cells))
    for key in ("length", "depth", "language"):
        means = [needle_means(card["long_context"], key) for card in cards]
        lines.append(f"needles found, by {key}")
        for value in means[0]:
            cells = [f"{100 * m[value]:.1f} %" if value in m else "-" for m in means]
            lines.append(f"  {value!s:<22}" + "".join(f"  {cell:>{width}}" for cell in cells))
    return "\n".join(lines)
