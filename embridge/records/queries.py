"""Notes of an evaluation or a plan on its queries and their judgments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QrelsCoverage:
    """Counts of the relevance judgments for the queries and rows of a benchmark.

    Attributes
    ----------
    queries, queries_found : int
        Queries with a relevant document, and how many of them are in the benchmark.
    documents, documents_found : int
        Documents relevant to these, and how many of them are in the corpus.
    """

    queries: int
    queries_found: int
    documents: int
    documents_found: int

    def __str__(self) -> str:
        return (
            f"judgments: {self.queries_found:,} of {self.queries:,} judged queries are among the queries, "
            f"{self.documents_found:,} of their {self.documents:,} relevant documents are in the corpus"
        )


def query_notes(qrels: QrelsCoverage | None, own_rows: int) -> list[str]:
    """Notes on the queries and their judgments."""
    notes = [] if qrels is None else [str(qrels)]
    if own_rows:
        notes.append(f"{own_rows:,} of the queries are rows of the corpus (same id, same vector) and do not find themselves")
    return notes
