"""Small real embeddings: 3,000 WordNet glosses and 600 queries by two encoders. Ids, lemmas, labels and vectors; no texts.

Derived from WordNet 3.0 (see WORDNET-LICENSE beside the files) with all-MiniLM-L6-v2 and all-mpnet-base-v2.
"""

from __future__ import annotations

from pathlib import Path

from embridge.errors import ParameterError

NAMES = ("minilm", "mpnet", "minilm.queries", "mpnet.queries", "qrels")


def sample_path(name: str) -> str:
    """Path of a bundled Parquet file.

    Parameters
    ----------
    name : str
        ``minilm`` (384 dimensions), ``mpnet`` (768), each with ``.queries``, or ``qrels`` (query_id, doc_id).

    Examples
    --------
    >>> sample_path("minilm").endswith("minilm.parquet")
    True
    """
    if name not in NAMES:
        raise ParameterError.must_be("name", f"one of {', '.join(NAMES)}", name)
    return str(Path(__file__).parent / f"{name}.parquet")
