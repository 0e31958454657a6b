"""Every store passes the conformance suite. What is particular to one: test_parquet, test_parquet_writer, test_faiss."""

import tempfile
from pathlib import Path
from typing import ClassVar

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embridge.stores import MemoryCollection, ParquetCollection
from embridge.stores.capabilities import Capabilities
from embridge.stores.faiss import file as faiss_file
from embridge.stores.faiss.collection import FaissCollection
from embridge.stores.faiss.file import IndexFile, write_index_file
from embridge.stores.parquet.writer import write_collection
from embridge.testing.stores import CollectionConformance
from embridge.types import Metric

IN_OTHER_ORDER = Capabilities(keeps_repeated_ids=True, keeps_order=False)

# Layouts: each writes one table below a folder and returns the path to open.


def one_file(folder, table):
    pq.write_table(table, folder / "a.parquet", row_group_size=13)
    return folder / "a.parquet"


def some_files(folder, table):
    for number, start in enumerate((0, 30, 70)):
        part = table.slice(start, (30, 40, 1000)[number])
        (folder / f"part{number}").mkdir()
        pq.write_table(part, folder / f"part{number}" / f"{number}.parquet", row_group_size=16)
    (folder / "_temporary").mkdir()
    (folder / "_temporary" / "9.parquet").write_text("what a crashed writer left")
    (folder / "README.md").write_text("not data")
    return folder


def glob_of_files(folder, table):
    some_files(folder, table)
    return folder / "part*" / "*.parquet"


class TestMemory(CollectionConformance):
    @pytest.fixture
    def make(self):
        return lambda ids, vectors, space, payload=None: MemoryCollection(ids, vectors, space, payload)


class TestMemoryOfSlicedArrays(CollectionConformance):
    @pytest.fixture
    def make(self):
        def make(ids, vectors, space, payload=None):
            padded = pa.array([ids[0], *ids, ids[0]])
            return MemoryCollection(padded[1:-1], np.pad(vectors, 1)[1:-1, 1:-1], space, pa.table(payload or {}))

        return make


class TestParquet(CollectionConformance):
    @pytest.fixture(params=[one_file, some_files, glob_of_files], ids=["file", "folder", "glob"])
    def make(self, tmp_path, request, table_of):
        def make(ids, vectors, space, payload=None):
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            return ParquetCollection(request.param(folder, table_of(ids, vectors, payload, space=space)))

        return make


class TestParquetAsEmbridgeWritesIt(CollectionConformance):
    options: ClassVar[dict] = {}

    @pytest.fixture
    def make(self, tmp_path):
        def make(ids, vectors, space, payload=None):
            memory = MemoryCollection(ids, vectors, space, payload)
            path = Path(tempfile.mkdtemp(dir=tmp_path)) / "out.parquet"
            with write_collection(path, space, memory.id_type, memory.payload_schema, **self.options) as writer:
                for batch in memory.batches(11, payload=True, validate=False):
                    writer.write(batch)
            return ParquetCollection(path)

        return make


class TestParquetAsEmbridgeWritesItCompactly(TestParquetAsEmbridgeWritesIt):
    options: ClassVar[dict] = {"compact": True}


class TestParquetAsEmbridgeWritesItInFloat16(TestParquetAsEmbridgeWritesIt):
    options: ClassVar[dict] = {"dtype": "float16"}
    keeps_bad_values = False  # what is narrowed is checked as it is written


class FaissConformance(CollectionConformance):
    """Ids by position in a sidecar; with `bare_ids` int64 ids are the labels of the index, which has no id sidecar then."""

    factory = "Flat"
    has_payload = False
    bare_ids = False

    @pytest.fixture
    def make(self, tmp_path, index_of):
        def make(ids, vectors, space, payload=None):
            is_bare = self.bare_ids and isinstance(ids[0], int)
            labels = ids if is_bare else np.arange(len(ids)) if "IDMap" in self.factory else None
            index = index_of(
                self.factory, vectors, labels, faiss.METRIC_L2 if space.metric == Metric.L2 else faiss.METRIC_INNER_PRODUCT
            )
            path = f"{tempfile.mkdtemp(dir=tmp_path)}/a.faiss"
            write_index_file(path, IndexFile(index, space, None if is_bare else pa.array(ids)))
            return FaissCollection(path)

        return make


class TestFlat(FaissConformance):
    factory = "Flat"


class TestHNSW(FaissConformance):
    factory = "HNSW8"
    keeps_bad_values = False
    is_reproducible = False


class TestIVF(FaissConformance):
    factory = "IVF4,Flat"
    capabilities = IN_OTHER_ORDER
    keeps_bad_values = False


class TestIVFWithLabels(FaissConformance):
    factory = "IVF4,Flat"
    bare_ids = True
    capabilities = IN_OTHER_ORDER
    keeps_bad_values = False


class TestIDMapOverFlat(FaissConformance):
    factory = "IDMap2,Flat"
    bare_ids = True


class TestIDMapOverHNSW(FaissConformance):
    factory = "IDMap2,HNSW8"
    bare_ids = True
    keeps_bad_values = False
    is_reproducible = False


class TestIDMapOverIVF(FaissConformance):
    factory = "IDMap2,IVF4,Flat"
    bare_ids = True
    capabilities = IN_OTHER_ORDER
    keeps_bad_values = False


class TestSQfp16(FaissConformance):
    factory = "SQfp16"


class TestIVFOfSQfp16(FaissConformance):
    factory = "IVF4,SQfp16"  # residuals to a centroid, which fp16 does not hold exactly
    capabilities = IN_OTHER_ORDER
    keeps_bad_values = False
    tolerance = 2e-3


class BehindRotation(FaissConformance):
    keeps_bad_values = False  # a rotation spreads NaN, but inf becomes NaN, and zero plus rounding is no zero
    tolerance = 1e-5


class TestBehindPCA(BehindRotation):
    factory = "PCA8,Flat"


class TestBehindPCAWithIVF(BehindRotation):
    factory = "PCA8,IVF4,Flat"
    capabilities = IN_OTHER_ORDER


class TestBehindOPQ(BehindRotation):
    factory = "OPQ4,Flat"
    is_reproducible = False


class TestBehindRandomRotation(BehindRotation):
    factory = "IDMap2,RR8,HNSW8"
    is_reproducible = False


@pytest.fixture
def mapped(monkeypatch):
    monkeypatch.setattr(faiss_file, "_MAPPED_FROM", 0)


@pytest.mark.usefixtures("mapped")
class TestMappedFlat(TestFlat):
    pass


@pytest.mark.usefixtures("mapped")
class TestMappedHNSW(TestHNSW):
    pass


@pytest.mark.usefixtures("mapped")
class TestMappedIDMapOverIVF(TestIDMapOverIVF):
    pass
