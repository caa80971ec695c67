"""How much one input may make this project read, expand, count or allocate: all such limits.

What people have lies far below each; what lies above is damage, or meant to do harm, and is refused in
a line that names the limit. Whoever really has more changes the number here.
"""

import json
from typing import Any

# --- the text of a record ------------------------------------------------------------------------

# A price, a rating or a measure is a few words. Longer ones are refused before they are looked at.
PRICE_CHARACTERS = 500

# Lists of a page in each other; each is indented by one sign more, so that text would grow with the square.
LIST_DEPTH = 100

# --- files of records ----------------------------------------------------------------------------

# A line, a row or an element that is longer is a file of another kind, or a quote left open. It is
# one bad record, and no more of it is held.
RECORD_BYTES = 2**26
CELL_CHARACTERS = 2**24
# Text shrinks to a tenth, to a fiftieth where every record is alike. What grows more often than this
# is refused where it does, once it is longer than a file of small records might be.
EXPANDED_TIMES = 500
EXPANDED_BYTES = 2**26
# Of what is expanded, this much is held at a time.
EXPANDED_BLOCK_BYTES = 2**20

# --- models --------------------------------------------------------------------------------------

# The largest Llama has 126 layers of 16,384, and a vocabulary of 128,256.
MODEL_SIZES = {
    "vocab_size": 2**22,
    "embed_dim": 2**17,
    "mlp_dim": 2**19,
    "num_layers": 2_000,
    "num_heads": 2**12,
    "num_kv_heads": 2**12,
    "head_dim": 2**12,
    "max_seq_len": 2**31,
}
# Of a tokenizer.json or another JSON file beside the weights; Llama 3.1's has 17 MB.
MODEL_JSON_BYTES = 2**28


def parse_json(text: str | bytes) -> Any:
    """Returns what a JSON text says, as `json.loads` does; one nested without end is a ValueError, too."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("brackets in a thousand others") from error
