"""Every key of `ellama curate`, with its default; a source is made by `source(...)`.

What: the common ground of the files in this directory; it names no source by itself.
Command: see catalogue.py, samples.py and marketplace.py.
"""

from ml_collections import ConfigDict

LANGUAGES = ("en", "de", "fr", "it", "es")


def get_config() -> ConfigDict:
    """Returns the configuration that other files start from."""
    config = ConfigDict()
    config.seed = 0  # of templates, aspect order and splits
    config.languages = LANGUAGES  # documents of others are dropped and counted
    config.cache_dir = ""  # where package: and synthetic: sources are kept; "": beside OUT
    config.mask_private = True  # e-mails, phone numbers, addresses, cards in pages and documents;
    #                             in listings and reviews always
    config.sources = ConfigDict()  # name -> source(...)

    listings = config.listings = ConfigDict()
    listings.templates = ()  # text forms to draw from, one a product; (): all of corpus/templates.py
    listings.collapse_variants = True  # sizes and colours of a product become one document
    listings.boilerplate_products = (
        50  # a sentence in descriptions of so many products goes; 0: none
    )

    pages = config.pages = ConfigDict()
    pages.min_language_score = 0.5  # below it the language is unknown and the page dropped
    pages.quality = True  # Gopher and C4 rules
    pages.classifier = ""  # of `ellama build-classifier`; decides the domain where it is ""

    duplicates = config.duplicates = ConfigDict()
    duplicates.near = True  # MinHash over all sources; exact ones always go
    duplicates.threshold = 0.75  # Jaccard similarity of shingles from which a document goes
    duplicates.num_perm = 128  # numbers in a signature
    duplicates.max_compared = 256  # documents of one bucket that others are compared with

    decontamination = config.decontamination = ConfigDict()
    decontamination.sets = ("mmlu",)  # the project's own evaluation sets
    decontamination.files = ()  # further ones: JSONL, JSON, CSV or text; globs
    decontamination.ngram = 13  # words (arXiv 2005.14165)
    decontamination.min_overlap = 0.5  # share of an item's n-grams found from which text goes

    split = config.split = ConfigDict()
    split.heldout_frac = 0.01  # of the products, with all their variants and translations
    split.heldout_texts_frac = 0.001  # of the documents without a product
    split.max_products_per_identifier = 50  # an identifier of more products identifies none

    output = config.output = ConfigDict()
    output.shard_bytes = 2**26  # of text in a file, before compression
    output.examples = 5  # of what was dropped, for each source and reason, in curation.json
    return config


def source(**changes) -> ConfigDict:
    """Returns one source with every key; `changes` are those that differ."""
    values = ConfigDict()
    values.kind = "documents"  # listings | reviews | pages | documents
    values.paths = ()  # files and globs, local or gs://; package:NAME; synthetic:listings:N
    values.format = "auto"  # by suffix, or jsonl | csv | tsv | parquet | tfrecord | tfds
    values.data_dir = ""  # where TFDS datasets were prepared; "": TFDS's own place
    values.fields = ConfigDict()  # our name -> where it stands in a record; {}: under our names
    values.domain = ""  # ecommerce | general; "": listings and reviews are ecommerce, pages
    #                     by the classifier, documents by their own field
    values.language = "field"  # of all records: a code; else field | detect
    values.products = ""  # shops of one name share product ids; "": the source's own name
    values.product_pattern = ""  # regular expression: its group is the product of a variant's id
    values.max_bad_frac = 0.01  # more unreadable records stop the job
    values.licence = ""  # noted in curation.json
    unknown = [key for key in changes if key not in values]
    if unknown:
        raise ValueError(f"source: {unknown[0]} is no key; known: {', '.join(values)}.")
    for key, value in changes.items():
        values[key] = ConfigDict(value) if key == "fields" else value
    return values
