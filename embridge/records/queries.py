"""What an evaluation or a plan says of its queries and their judgements."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QrelsCoverage:
    """How much of the relevance judgements concerns the queries and rows at hand.

    Attributes
    ----------
    queries, queries_found : int
        Queries with a relevant document, and how many of them were searched with.
    documents, documents_found : int
        Documents that are relevant to these, and how many of them are rows of the corpus.
    """

    queries: int
    queries_found: int
    documents: int
    documents_found: int

    def __str__(self) -> str:
        return (
            f"judgements: {self.queries_found:,} of {self.queries:,} judged queries are among the queries, "
            f"{self.documents_found:,} of their {self.documents:,} relevant documents are in the corpus"
        )


def query_notes(qrels: QrelsCoverage | None, own_rows: int) -> list[str]:
    """What a reader must know of the queries and their judgements."""
    notes = [] if qrels is None else [str(qrels)]
    if own_rows:
        notes.append(f"{own_rows:,} of the queries are rows of the corpus (same id, same vector); they do not find themselves")
    return notes
