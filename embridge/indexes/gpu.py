"""Support of faiss-gpu, where it is installed and there is a device."""

from __future__ import annotations

from typing import Any

import faiss

GPU_LIMIT = 2048  # k and nprobe on a GPU


def gpu_count() -> int:
    """CUDA devices that this FAISS can use: 0 for faiss-cpu."""
    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0


def on_gpu(index: Any) -> Any:
    """The index on the first GPU, or unchanged where FAISS has no GPU or no GPU version of its type (HNSW)."""
    lists = faiss.try_extract_index_ivf(index)
    if not gpu_count() or (lists is not None and lists.nprobe > GPU_LIMIT):
        return index
    resources = faiss.StandardGpuResources()
    try:
        placed = faiss.index_cpu_to_gpu(resources, 0, index)
    except RuntimeError:
        return index
    placed.embridge_resources = resources  # freed with the index, not before
    return placed
