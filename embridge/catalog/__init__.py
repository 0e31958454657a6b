"""Facts, quality and lineage in one DuckDB file that can be queried with SQL."""

from __future__ import annotations

from embridge.catalog.catalog import Catalog

__all__ = ["Catalog"]
