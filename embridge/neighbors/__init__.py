"""Exact nearest neighbors by blocked matrix products, and the overlap of two lists of neighbors. The only brute force.

Scores are computed in float64, under L2 about a center of the rows. In float32 the usual ``|q|^2 - 2 <q, x> + |x|^2`` cancels
where rows share a large common part, squares of long rows overflow, and cosines of nearly parallel rows are all 1. Under cosine
and inner product a first pass in float32 finds candidates, and only those within its error bound are computed again
(`embridge.neighbors.screening`).
"""

from embridge.neighbors.exact import Nearest, check_k, overlap, rankings, top_k

__all__ = ["Nearest", "check_k", "overlap", "rankings", "top_k"]
