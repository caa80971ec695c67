"""A template: one's own catalogue and an open web corpus, 1T tokens, half of them e-commerce.

What: copy this file, name your files and where each field stands in them, and delete what you do not
have. `ellama curate` tries the first thousand records of every source before it starts, and names the
first field that does not fit.
Command, a sample on one machine:

    ellama curate --config marketplace.py:sample --out curated

Command, all of it on Dataflow (any Beam runner: the options are Beam's own):

    ellama curate --config marketplace.py:all --out gs://BUCKET/curated --runner=DataflowRunner \\
        --project=PROJECT --region=REGION --temp_location=gs://BUCKET/tmp \\
        --sdk_container_image=IMAGE_WITH_ELLAMA --max_num_workers=200

The web pages need a classifier of e-commerce text, trained on documents of yours:
`ellama build-classifier seeds.jsonl gs://BUCKET/classifier`.

Sizing of 1T tokens, from rates of one core (docs/RESULTS.md, "Data") and 3.5 bytes of text a token
(Llama 3.1's tokenizer on five languages; English prose alone has more). Assumed, not measured: two
thirds of the raw text are kept, a document has 2.3 kB, and a cluster's runner costs as much as the
in-process one.

    step       what goes in            rate of a core   core-hours   for example
    curate     5.3 TB of raw text      0.17 MB/s             8,600   200 workers of 4 cores: 11 hours
    prepare    3.5 TB of documents     0.96 MB/s             1,000   one machine of 96 cores: 11 hours
    windows    1T tokens               -                         -   2.4 TB on disk, and 4 TB of work
    training   11.8M tokens a step     12M tokens/s              -   each host reads its rows alone

The near-duplicate search shuffles 21 rows of some 560 bytes a document: about 18 TB for 1.5 billion.
"""

from configs.data import base

BUCKET = "gs://BUCKET/raw"


def get_config(size: str = "sample"):
    """Returns the configuration for a `sample` of each source, or for `all`."""
    if size not in ("sample", "all"):
        raise ValueError(f"marketplace.py: must be sample or all, got {size}.")
    some = "00000*" if size == "sample" else "*"
    config = base.get_config()

    # Listings as the catalogue's nightly dump writes them: nested JSON, a file an hour.
    config.sources.catalogue = base.source(
        kind="listings",
        paths=(f"{BUCKET}/catalogue/{some}.json.gz",),
        format="jsonl",
        fields={
            "title": "item.title",
            "category": "item.category_path",
            "aspects": "item.specifics",
            "price": "offer.price",
            "currency": "offer.currency",
            "description": "item.description_html",
            "language": "site.language",
            "product_id": "item.parent_sku|item.sku",
            "gtin": "item.ean",
            "seller": "seller.name",
        },
        products="shop",
    )
    # Reviews of the same products, from the warehouse: Parquet.
    config.sources.reviews = base.source(
        kind="reviews",
        paths=(f"{BUCKET}/reviews/{some}.parquet",),
        fields={
            "title": "headline",
            "text": "body",
            "rating": "stars",
            "language": "lang",
            "product_id": "sku",
        },
        products="shop",
    )
    # An open web corpus of extracted text (FineWeb and FineWeb-2 have these columns). The
    # classifier gives each page its domain: shop pages join the e-commerce half, the rest replays
    # what the base model saw.
    config.sources.web = base.source(
        kind="pages",
        paths=(f"{BUCKET}/web/*/{some}.parquet",),
        fields={"text": "text"},
        language="detect",
        max_bad_frac=0.05,
    )
    config.pages.classifier = "gs://BUCKET/classifier"
    # What nothing may be trained on: your own test sets, besides the project's.
    config.decontamination.files = ("gs://BUCKET/eval/*.jsonl",)
    config.split.heldout_frac = 0.002
    config.split.heldout_texts_frac = 0.0001
    if size == "all":
        config.output.shard_bytes = 2**28
    return config
