"""`Rollout`: the verbs of a rollout."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from embridge.anchors import Anchors
from embridge.errors import ParameterError
from embridge.indexes.index import Index
from embridge.indexes.search import search
from embridge.outputs import Output, check_outputs
from embridge.records.rollout import RolloutStatus, RolloutStep
from embridge.rollout.entering import Judgments, as_graded, check_space, check_whole, entering_queries, entering_rows
from embridge.rollout.finish import write_new_space
from embridge.rollout.stage import Stage
from embridge.rollout.start import start
from embridge.rollout.steps import INDEX, State, commit, read_state, reading, replace_state, seal, step
from embridge.rollout.write import add_native, add_queries, list_rows, references_of
from embridge.stores import source_paths
from embridge.stores.base import Collection
from embridge.types import Hits, Space


class Rollout:
    """A collection that moves to a new encoder step by step.

    A rollout is a folder. Every row has a vector of the old space, and one of the new space: by a map, or native once the new model
    has encoded it. A row is scored by both (fused search, `embridge.indexes.fusion`), so a rollout can be searched from the first
    step on. `next` lists the rows that the new model should encode, `add` takes their vectors, `status` says how good search is,
    and `finish` writes a collection of the new space alone.

    Each step makes a whole new stage beside the present one and then takes its place. Killed at any moment, a rollout has the stage
    before or after the step; repeat the step. Two processes cannot change a rollout at once; searching and `status` work at any
    time.

    Parameters
    ----------
    path : str or path-like
        The folder of a rollout that `Rollout.start` made.

    Attributes
    ----------
    path : str
    started : RolloutStep or None
        What `start` did, where it made this object.

    Raises
    ------
    MissingFileError, UnreadableFileError
        There is no rollout, or it is damaged.

    Examples
    --------
    >>> import tempfile, embridge as eb
    >>> old, new = eb.open(eb.sample_path("minilm")), eb.open(eb.sample_path("mpnet"))
    >>> first = eb.MemoryCollection(*(part[:600] for part in new.read()), new.space)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     status = eb.Rollout.start(old, first, f"{folder}/rollout").status()
    >>> status.native, status.translated, status.stage
    (600, 2400, 0)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.started: RolloutStep | None = None
        self._opened: tuple[Stage, Index | None] | None = None
        read_state(self._root)

    @property
    def _root(self) -> Path:
        return Path(self.path)

    def __repr__(self) -> str:
        return f"Rollout({self.path!r})"

    @classmethod
    def start(
        cls,
        old: Collection,
        sample: Collection,
        path: str | os.PathLike[str],
        *,
        queries: Anchors | None = None,
        qrels: Judgments | None = None,
        factory: str | None = None,
        seed: int = 0,
    ) -> Rollout:
        """Start a rollout: fit the maps, translate all rows but those of the sample, and measure stage 0.

        A start that is repeated with the same inputs, before rows were added, has nothing to do.

        Parameters
        ----------
        old : Collection
            All rows, by the old model.
        sample : Collection
            Some of the rows, by the new model; native from the start. They need not be random (`embridge.sample_rows`).
        path : str or path-like
            The folder to make.
        queries : Anchors, optional
            Logged queries by both models (`embridge.match` of two collections).
        qrels : mapping of query id to document ids, or to mapping of document id to grade, optional
            Relevance judgments of these queries.
        factory : str, optional
            FAISS factory string, such as ``HNSW32``: a fused index is kept in the rollout. Default: search is exact.
        seed : int, default 0

        Returns
        -------
        Rollout
            `started` says what was done.

        Raises
        ------
        InterruptedOutputError
            The folder exists, or another process is making it.
        BadIdsError
            An id is repeated, or a row of the sample is not one of `old`.
        ParameterError
            A space is measured by L2, or judgments of none of the queries or rows.
        TooFewAnchorsError
            The sample is too small to fit a map.
        SpaceMismatchError, BadVectorsError, CollectionError
            Nothing is written.
        """
        check_outputs(Output(path, folder=True), resume=True)
        done = start(old, sample, Path(path), queries, as_graded(qrels), factory or "", check_whole("seed", seed, 0))
        rollout = cls(path)
        rollout.started = done
        return rollout

    @property
    def spaces(self) -> tuple[Space, Space]:
        """The old and the new space."""
        return reading(self._root, lambda _, folder: (Stage(folder).old.space, Stage(folder).new.space))

    @property
    def collection(self) -> Collection:
        """The rows of the present stage with both vectors: a two-vector collection."""
        return reading(self._root, lambda _, folder: Stage(folder).new)

    def status(self) -> RolloutStatus:
        """How good search is, and what the next rows are expected to bring. The figures were measured by the last step."""
        return reading(self._root, lambda state, _: state.status)

    def next(self, n: int, path: str | os.PathLike[str], *, again: bool = False, overwrite: bool = False) -> RolloutStep:
        """List the rows that the new model should encode next: those that most logged queries reach, never a row twice.

        Without logged queries, those in whose neighborhood most rows are.

        Parameters
        ----------
        n : int
            Fewer are listed where fewer are left.
        path : str or path-like
            The Parquet file to write: ``id``, ``order`` (from 1) and ``queries`` (the number of queries that reach the row), for
            ``embridge encode --ids``.
        again : bool, default False
            Rows that were listed before, and are not native yet, may be listed again.
        overwrite : bool, default False
            Replace the file. Rows of a list that is replaced, and are not native yet, may be listed again.

        Raises
        ------
        ParameterError
            n is below 1, or no row is left.
        OutputExistsError, InterruptedOutputError
        """
        started = time.perf_counter()
        count = check_whole("n", n, 1)
        with step(self._root, Output(path), inputs=[], overwrite=overwrite) as (state, folder, _):
            made, rows = list_rows(state, Stage(folder), self._root, count, Path(path), again=again)
            replace_state(self._root, made)
        return RolloutStep(self.path, "next", rows, made.status, time.perf_counter() - started, output=os.fspath(path))

    def add(self, native: Collection) -> RolloutStep:
        """Add native vectors: the next stage.

        Moments are updated, and each map is fitted again where that is better on held-out native rows; then the other rows are
        translated again. The fused search is chosen and measured again. The index is changed in place where only the new rows
        changed and FAISS can remove rows, else it is built again.

        Parameters
        ----------
        native : Collection
            Rows by the new model, with ids of the rollout. A row that is native already must have the same vector, and is passed
            over, so a step that was interrupted can be repeated.

        Raises
        ------
        BadIdsError
            An id is repeated, or is not one of the rollout.
        SpaceMismatchError
            It is of another space.
        BadVectorsError
            NaN, infinite or zero vectors, or a row that is native already with another vector.
        InterruptedOutputError
            Another process works on the rollout.
        """
        started = time.perf_counter()
        with step(self._root, inputs=source_paths(native)) as (state, folder, working):
            stage = Stage(folder)
            entering, known = entering_rows(stage, native)
            done = RolloutStep(self.path, "add", len(entering.rows), state.status, known=known)
            if len(entering.rows):
                made, done = add_native(state, stage, working, entering, done)
                self._commit(made, working, status=done.status)
        return done.timed(time.perf_counter() - started)

    def queries(self, queries: Anchors, *, qrels: Judgments | None = None) -> RolloutStep:
        """Add logged queries and judgments, and measure the present stage by all of them.

        Parameters
        ----------
        queries : Anchors
            By both models (`embridge.match` of two collections). A query that is known already must have the same vectors.
        qrels : mapping, optional
            As for `start`.

        Raises
        ------
        SpaceMismatchError, BadIdsError, BadVectorsError, ParameterError, InterruptedOutputError
        """
        started = time.perf_counter()
        with step(self._root, inputs=[]) as (state, folder, working):
            stage = Stage(folder)
            whole, fresh = entering_queries(stage, queries)
            graded = as_graded(qrels)
            done = RolloutStep(self.path, "queries", fresh, state.status, known=len(queries) - fresh)
            if fresh or graded:
                made, done = add_queries(state, stage, working, whole, graded, done)
                self._commit(made, working, status=done.status)
        return done.timed(time.perf_counter() - started)

    def search(
        self, queries: Collection, k: int = 10, *, old_queries: Collection | None = None, parameters: str = ""
    ) -> tuple[np.ndarray, Hits]:
        """Search all rows by both of their vectors.

        Parameters
        ----------
        queries : Collection
            By the new model.
        k : int, default 10
        old_queries : Collection, optional
            The same queries by the old model, matched by id. Without them the queries are projected into the old space.
        parameters : str, optional
            Search parameters of FAISS, where the rollout has an index.

        Returns
        -------
        ids : ndarray of shape (n_queries,)
            Of the queries.
        hits : Hits

        Raises
        ------
        SpaceMismatchError, BadIdsError, BadVectorsError, ParameterError
        """

        def run(state: State, folder: Path) -> tuple[np.ndarray, Hits]:
            stage, index = self._open(folder, has_index=bool(state.factory))
            for side, space in ((queries, stage.new.space), (old_queries, stage.old.space)):
                if side is not None:
                    check_space("The rollout", space, side)
            if parameters and index is None:
                raise ParameterError(f"Search parameters ({parameters}) belong to an index, and {self.path!r} has none.")
            status, options = state.status, {"old_queries": old_queries, "parameters": parameters}
            if old_queries is None:
                options |= {"via": stage.projection}
                options |= {"weight": status.new_queries_weight, "hubness": status.new_queries_hubness}
            else:
                options |= {"weight": status.weight, "hubness": status.hubness}
            if index is None and options["hubness"] != "none":
                options |= dict(zip(("references", "old_references"), references_of(stage, state.seed), strict=True))
            return search(index or stage.new, queries, min(k, len(stage.new)), **options)

        return reading(self._root, run)

    def finish(self, path: str | os.PathLike[str], *, accept_loss: bool = False, overwrite: bool = False) -> RolloutStep:
        """Write a collection of the new space alone: native rows where encoded, translated elsewhere (column ``provenance``).

        The rollout stays as it is.

        Parameters
        ----------
        path : str or path-like
            The Parquet file to write.
        accept_loss : bool, default False
            Write it although it is not measured to be as good as the old model.
        overwrite : bool, default False

        Raises
        ------
        VerificationError
            Search of the new space alone is not measured to be as good as the old model, with the figures.
        OutputExistsError
        """
        started = time.perf_counter()
        done = reading(
            self._root, lambda state, folder: write_new_space(state, Stage(folder), self.path, path, accept_loss, overwrite)
        )
        return done.timed(time.perf_counter() - started)

    def _open(self, folder: Path, *, has_index: bool) -> tuple[Stage, Index | None]:
        """The stage and its index, opened once."""
        if self._opened is None or self._opened[0].folder != folder:
            self._opened = Stage(folder), Index(folder / INDEX) if has_index else None
        return self._opened

    def _commit(self, state: State, working: Path, *, status: RolloutStatus) -> None:
        name = seal(working, status.stage, state.lineage)
        commit(self._root, working, replace(state, folder=name, status=status))
