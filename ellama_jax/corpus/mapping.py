"""Field mapping: which parts of a shop's record become which of our fields, said in a config.

Owns the mini-language of such a mapping and its use on one record. It reads no files
(corpus/readers.py does) and gives the values as they are: what a title or a price must look like is
the business of corpus/listings.py.

A mapping has our name on the left and a source on the right:

    "title|name"                the first of these columns that is there and not empty
    "offer.price.amount"        a field inside a field
    "images.0", "trail.-1"      the first, the last element of a list
    "categories.*.name"         the list of that field of every element of a list (or mapping)
    "='EUR'"                    a constant
    "brand,color,size"          these columns gathered into one mapping, named as they are
    "Colour=variant.color"      gathered under another name; a comma puts more beside it
    "attributes[name:value]"    a list of name-and-value objects gathered into one mapping
    "[Option1 Name:Option1 Value]"  the same for two columns of the record itself
    "*"                         all columns that nothing else in the mapping names

Empty are null, a blank string, an empty list or mapping, and a number that is not finite. What is
gathered leaves out what is empty; a mapping found there is merged in; a name that comes
twice has the list of its values. Names may hold spaces, `(`, `:` and `'` as they are; one that
holds a `.`, `,`, `|`, `=`, `[` or `]` stands between backticks, and so does a `*` or a number that
is a name (a backtick in a name is doubled). Between brackets a `:` needs them too. A tuple of
sources means: the first that gives something.

>>> mapping = parse_mapping({
...     "title": "name.de|name.en", "price": "offers.0.price", "currency": "='EUR'",
...     "category": "trail.*.label", "aspects": "attributes[name:value],Marke=`g.brand`"})
>>> map_fields({"name": {"en": "Kettle"}, "offers": [{"price": 19.9}], "g.brand": "Acme",
...     "trail": [{"label": "Home"}, {"label": "Kitchen"}],
...     "attributes": [{"name": "Volume", "value": "1 l"}]}, mapping)
{'title': 'Kettle', 'price': 19.9, 'currency': 'EUR', 'category': ['Home', 'Kitchen'], \
'aspects': {'Volume': '1 l', 'Marke': 'Acme'}}
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_QUOTED = r"`(?:[^`]|``)+`"
_CONSTANT = r"='(?:[^']|'')*'"
# What is split at a mark is split around these, never inside them.
_PIECE = re.compile(
    rf"{_QUOTED}|{_CONSTANT}|\[(?:{_QUOTED}|{_CONSTANT}|[^\[\]`])*\]|[^`\[\]]", re.DOTALL
)
_RENAMED = re.compile(rf"({_QUOTED}|[^`=.,|\[\]]+)=(.*)", re.DOTALL)
_PAIRED = re.compile(rf"((?:{_QUOTED}|[^`\[\]])*)\[(.*)\]", re.DOTALL)
_BARE = re.compile(r"[^`=.,|\[\]]+")
_INDEX = re.compile(r"-?\d+")
_ABSENT = object()
_EVERY = None  # the step `*`

# A step of a path: a name, the index of a list, or every element.
_Step = str | int | None


@dataclass(frozen=True)
class _Path:
    steps: tuple[_Step, ...]


@dataclass(frozen=True)
class _Constant:
    value: str


@dataclass(frozen=True)
class _Pairs:
    """A list of objects at `base`, each with a name and a value."""

    base: tuple[_Step, ...]
    name: "_Choice"
    value: "_Choice"


@dataclass(frozen=True)
class _Rest:
    """All columns but those that the mapping names elsewhere."""

    named: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Choice:
    """The first of several terms that gives something."""

    terms: tuple[_Path | _Constant | _Pairs, ...]


@dataclass(frozen=True)
class _Item:
    """One part of what is gathered, under `name` where it is given one."""

    name: str | None
    source: _Choice | _Rest


@dataclass(frozen=True)
class _Gather:
    items: tuple[_Item, ...]


@dataclass(frozen=True)
class _Probe:
    """A path as written, to ask whether a record has it; `inner` is looked for in each of a list's
    objects."""

    text: str
    steps: tuple[_Step, ...]
    inner: tuple[_Step, ...] = ()


@dataclass(frozen=True)
class FieldMapping:
    """A mapping that was checked; see `parse_mapping`. It can be pickled.

    Attributes:
        names: ours, in the order of the mapping.
        paths: every path that the mapping looks at, as written.
        columns: the columns of a record that it looks at, or None for all.
    """

    sources: tuple[tuple[str, tuple[_Choice | _Gather, ...]], ...]
    probes: tuple[_Probe, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.sources)

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(probe.text for probe in self.probes)

    @property
    def columns(self) -> frozenset[str] | None:
        everything = any(isinstance(item.source, _Rest) for item in _items_of(self.sources))
        return None if everything else _columns(self.probes)


def parse_mapping(mapping: Mapping[str, str | Sequence[str]]) -> FieldMapping:
    """Checks a mapping and readies it for use; do this once, before any record is read.

    Args:
        mapping: our name -> source in the language of this module, or several of them.

    Raises:
        ValueError: names the field and what cannot be understood in its source.

    >>> parse_mapping({"title": "name..de"})
    Traceback (most recent call last):
        ...
    ValueError: title: must have a name between dots, got 'name..de'.
    >>> sorted(parse_mapping({"id": "sku", "aspects": "attributes[name:value]"}).paths)
    ['attributes[name]', 'attributes[value]', 'sku']
    """
    if not mapping:
        raise ValueError("mapping: must name at least one field, got none.")
    sources, probes = [], {}
    for name, given in mapping.items():
        texts = tuple(given) if isinstance(given, list | tuple) else (given,)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name}: must be a source or several of them, got {given!r}.")
        try:
            parsed = tuple(_parse_source(text, probes) for text in texts)
        except ValueError as error:
            raise ValueError(f"{name}: must {error}, got {given!r}.") from None
        sources.append((name, parsed))
    found = tuple(probes.values())
    rest = _Rest(_columns(found) or frozenset())
    return FieldMapping(tuple((name, _fill(parsed, rest)) for name, parsed in sources), found)


def map_fields(fields: Mapping[str, Any], mapping: FieldMapping) -> dict[str, Any]:
    """Returns our fields of one record; a field of which the record has nothing is left out.

    Args:
        fields: a record as it was read, plain values only.
        mapping: from `parse_mapping`.

    Raises:
        ValueError: if the value of a field is bytes, which are no UTF-8 (corpus/readers.py gives all
            others as strings).

    >>> map_fields({"Title": "", "Handle": "cup"}, parse_mapping({"title": "Title|Handle"}))
    {'title': 'cup'}
    """
    result = {}
    for name, sources in mapping.sources:
        for source in sources:
            value = _gather(fields, source) if type(source) is _Gather else _choose(fields, source)
            if _is_empty(value):
                continue
            if type(value) is bytes:
                raise ValueError(f"{name}: must be text, got {len(value)} bytes that are no UTF-8.")
            result[name] = value
            break
    return result


def missing_paths(
    fields: Mapping[str, Any], mapping: FieldMapping, among: Iterable[str] | None = None
) -> frozenset[str]:
    """Returns the paths of a mapping that a record does not have.

    A path that no record has is a slip of the pen. Give what is returned as `among` of the next
    record, and what is left at the end was in none; an empty rest costs nothing.

    Args:
        among: paths to ask about; all of `mapping.paths` by default.

    >>> mapping = parse_mapping({"title": "titel|name", "id": "sku"})
    >>> left = missing_paths({"name": "Cup", "sku": None}, mapping)
    >>> sorted(left), sorted(missing_paths({"titel": "Tasse"}, mapping, left))
    (['titel'], [])
    """
    wanted = mapping.paths if among is None else frozenset(among)
    if not wanted:
        return wanted
    return frozenset(p.text for p in mapping.probes if p.text in wanted and not _has(fields, p))


# --- the language --------------------------------------------------------------------------------


def _parse_source(text: str, probes: dict[str, _Probe]) -> _Choice | _Gather:
    parts = _split(text, ",")
    items = tuple(_parse_item(part, probes) for part in parts)
    only = items[0]
    alone = len(items) == 1 and only.name is None and isinstance(only.source, _Choice)
    if alone and not any(isinstance(term, _Pairs) for term in only.source.terms):
        return only.source
    for item in items:
        for term in () if item.name or isinstance(item.source, _Rest) else item.source.terms:
            if not isinstance(term, _Pairs) and _last_name(term) is None:
                raise ValueError("name what is gathered, as in Colour='red'")
    return _Gather(items)


def _parse_item(text: str, probes: dict[str, _Probe]) -> _Item:
    if text == "*":
        return _Item(None, _Rest())
    renamed = _RENAMED.fullmatch(text)
    if not renamed:
        return _Item(None, _parse_choice(text, probes))
    name, rest = renamed.groups()
    # Colour='red' names a constant: there one equals sign is enough.
    rest = "=" + rest if rest.lstrip().startswith("'") else rest
    return _Item(_parse_name(name), _parse_choice(rest, probes))


def _parse_choice(text: str, probes: dict[str, _Probe]) -> _Choice:
    return _Choice(tuple(_parse_term(part, probes) for part in _split(text, "|")))


def _parse_term(text: str, probes: dict[str, _Probe]) -> _Path | _Constant | _Pairs:
    if text.startswith("="):
        if not re.fullmatch(_CONSTANT, text, re.DOTALL):
            raise ValueError("have a constant as ='EUR'")
        return _Constant(text[2:-1].replace("''", "'"))
    paired = _PAIRED.fullmatch(text)
    if paired:
        return _parse_pairs(*paired.groups(), probes)
    return _Path(_note(probes, _Probe(text, _parse_steps(text))).steps)


def _parse_pairs(base: str, inside: str, probes: dict[str, _Probe]) -> _Pairs:
    halves = _split(inside, ":")
    if len(halves) != 2:
        raise ValueError("have [name:value] with one colon between the brackets")
    steps = _parse_steps(base) if base.strip() else ()
    choices = []
    for half in halves:
        own: dict[str, _Probe] = {}
        choices.append(_parse_choice(half, own))
        if any(isinstance(term, _Pairs) for term in choices[-1].terms):
            raise ValueError("have no brackets inside brackets")
        for probe in own.values():
            text = f"{base.strip()}[{probe.text}]" if steps else probe.text
            whole = _Probe(text, steps, probe.steps) if steps else probe
            _note(probes, whole)
    return _Pairs(steps, *choices)


def _parse_steps(text: str) -> tuple[_Step, ...]:
    return tuple(_parse_step(part) for part in _split(text, "."))


def _parse_step(text: str) -> _Step:
    if text == "*":
        return _EVERY
    return int(text) if _INDEX.fullmatch(text) else _parse_name(text)


def _parse_name(text: str) -> str:
    text = text.strip()
    if re.fullmatch(_QUOTED, text, re.DOTALL):
        return text[1:-1].replace("``", "`")
    if not text:
        raise ValueError("have a name between dots")
    if not _BARE.fullmatch(text):
        raise ValueError("have names with . , | = [ ] between backticks")
    return text


def _split(text: str, mark: str) -> list[str]:
    parts, at = [""], 0
    while at < len(text):
        piece = _PIECE.match(text, at)
        if piece is None:
            raise ValueError(f"close every ` and [, as at {text[at : at + 20]!r}")
        if piece[0] == mark:
            parts.append("")
        else:
            parts[-1] += piece[0]
        at = piece.end()
    return [part.strip() for part in parts]


def _note(probes: dict[str, _Probe], probe: _Probe) -> _Probe:
    return probes.setdefault(probe.text, probe)


def _fill(sources: tuple[_Choice | _Gather, ...], rest: _Rest) -> tuple[_Choice | _Gather, ...]:
    """Tells every `*` what the mapping names elsewhere."""
    return tuple(
        _Gather(
            tuple(_Item(i.name, rest if type(i.source) is _Rest else i.source) for i in s.items)
        )
        if type(s) is _Gather
        else s
        for s in sources
    )


def _items_of(sources: Iterable[tuple[str, tuple[_Choice | _Gather, ...]]]) -> Iterator[_Item]:
    for _, parsed in sources:
        for source in parsed:
            yield from source.items if isinstance(source, _Gather) else ()


def _columns(probes: Iterable[_Probe]) -> frozenset[str] | None:
    first = [probe.steps[0] for probe in probes]
    return None if _EVERY in first else frozenset(str(step) for step in first)


# --- one record ----------------------------------------------------------------------------------


def _find(value: Any, steps: tuple[_Step, ...]) -> Any:
    """Returns what lies at a path, or _ABSENT."""
    for number, step in enumerate(steps):
        if type(step) is str and type(value) is dict:  # nearly always, and the quickest
            value = value.get(step, _ABSENT)
        elif step is _EVERY:
            return _find_every(value, steps[number + 1 :])
        elif isinstance(value, Mapping):
            value = value.get(str(step), _ABSENT)
        elif isinstance(value, list) and type(step) is int and -len(value) <= step < len(value):
            value = value[step]
        else:
            return _ABSENT
    return value


def _find_every(value: Any, steps: tuple[_Step, ...]) -> Any:
    elements = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping | list):
        return _ABSENT
    found = [part for part in (_find(e, steps) for e in elements) if part is not _ABSENT]
    if not found:
        return _ABSENT
    if _EVERY in steps:
        found = [part for parts in found for part in parts]
    return [part for part in found if not _is_empty(part)]


def _is_empty(value: Any) -> bool:
    kind = type(value)
    if kind is str:
        return not value or value.isspace()
    if kind is float:
        return not math.isfinite(value)
    return value is None or value is _ABSENT or ((kind is list or kind is dict) and not value)


def _choose(fields: Any, choice: _Choice) -> Any:
    for term in choice.terms:
        if type(term) is _Path:
            value = _find(fields, term.steps)
        else:
            value = term.value if type(term) is _Constant else _pair(fields, term)
        if not _is_empty(value):
            return value
    return None


def _gather(fields: Mapping[str, Any], gather: _Gather) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for item in gather.items:
        if type(item.source) is _Rest:
            for name, value in fields.items():
                # A picture in a column is no reason to lose the record that holds it.
                if name not in item.source.named and type(value) is not bytes:
                    _add(result, name, value)
            continue
        for term in item.source.terms:
            value = _choose(fields, _Choice((term,)))
            if not _is_empty(value):
                _add_item(result, item.name, term, value)
                break
    return result


def _add_item(result: dict[str, Any], name: str | None, term: Any, value: Any) -> None:
    if name is not None:
        _add(result, name, value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _add(result, str(key), inner)
    else:
        _add(result, _last_name(term), value)


def _last_name(term: _Path | _Constant) -> str | None:
    steps = term.steps if type(term) is _Path else ()
    return next((step for step in reversed(steps) if type(step) is str), None)


def _add(result: dict[str, Any], name: str, value: Any) -> None:
    if _is_empty(value) or not name.strip():
        return
    if type(value) is bytes:
        raise ValueError(f"{name}: must be text, got {len(value)} bytes that are no UTF-8.")
    name = name.strip()
    if name not in result:
        result[name] = value
        return
    values = result[name] if isinstance(result[name], list) else [result[name]]
    more = value if isinstance(value, list) else [value]
    result[name] = values + [one for one in more if one not in values]


def _pair(fields: Any, pairs: _Pairs) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for entry in _entries(fields, pairs.base):
        name, value = _choose(entry, pairs.name), _choose(entry, pairs.value)
        if not _is_empty(name):
            _add(result, str(name), value)
    return result


def _entries(fields: Any, base: tuple[_Step, ...]) -> list:
    found = _find(fields, base)
    return found if isinstance(found, list) else [found] if isinstance(found, Mapping) else []


def _has(fields: Mapping[str, Any], probe: _Probe) -> bool:
    if not probe.inner:
        return _find(fields, probe.steps) is not _ABSENT
    return any(_find(e, probe.inner) is not _ABSENT for e in _entries(fields, probe.steps))
