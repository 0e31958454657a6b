"""Ends a rollout: a collection of the new space alone."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa

from embridge.conversion import copy
from embridge.errors import VerificationError
from embridge.files import fingerprint
from embridge.outputs import Output, claim
from embridge.records.rollout import RolloutStatus, RolloutStep
from embridge.rollout.stage import OLD_VECTOR, PROVENANCE, Stage
from embridge.rollout.steps import State
from embridge.stores.base import Batch
from embridge.stores.parquet.writer import write_collection
from embridge.stores.provenance import with_payload
from embridge.stores.registry import store_of


def write_new_space(
    state: State, stage: Stage, root: str, path: str | os.PathLike[str], accept_loss: bool, overwrite: bool
) -> RolloutStep:  # fmt: skip
    """Write the rows without their old vectors, if that loses nothing or the loss is accepted (see `Rollout.finish`)."""
    status, name = state.status, os.fspath(path)
    loss = _loss(status)
    notes = (loss,) if loss else ()
    if store_of(name) is not None:
        _check(loss, accept_loss)
        done = copy(with_payload(stage.new, _payload(stage)), name, overwrite=overwrite)
        return RolloutStep(root, "finish", done.rows, status, output=done.path, notes=notes, fingerprint=done.fingerprint)
    with claim(Output(path), inputs=[root], overwrite=overwrite) as [target]:
        _check(loss, accept_loss)
        _write(stage, target)
        made = fingerprint(target)
    return RolloutStep(root, "finish", status.rows, status, output=os.fspath(path), notes=notes, fingerprint=made)


def _check(loss: str, accept_loss: bool) -> None:
    if loss and not accept_loss:
        raise VerificationError(f"{loss} Hint: encode more rows, or --accept-loss (accept_loss=True).")


def _payload(stage: Stage) -> pa.Schema:
    """The columns of the rows without their old vectors."""
    return pa.schema([field for field in stage.new.payload_schema if field.name != OLD_VECTOR])


def _loss(status: RolloutStatus) -> str:
    """The measured loss of search by new vectors alone, as a sentence; empty where there is none."""
    alone, old, now = status.new_space, status.keep_old, status.now
    if alone.is_lossless:
        return ""
    share = f"{status.native:,} of {status.rows:,} rows native"
    if alone.recall is None or old.recall is None or now.recall is None or alone.gain_ci is None or alone.gain is None:
        return f"Without logged queries and judgments it is not known what the new space alone loses ({share})."
    low, high = alone.gain_ci
    return (
        "The new space alone is not measured to be as good as the old model: "
        f"recall@10 {alone.recall:.3f} against {old.recall:.3f}, difference {alone.gain:+.3f} [{low:+.3f}, {high:+.3f}], "
        f"and {now.recall:.3f} for fused search now ({share})."
    )


def _write(stage: Stage, target: Path) -> None:
    new = stage.new
    schema = _payload(stage)
    lineage: dict[str, str] = getattr(new, "lineage", {})
    options = {"columns": (new.id_column, new.vector_column), "lineage": lineage, "provenance": PROVENANCE}
    with write_collection(target, new.space, new.id_type, schema, metadata=new.metadata, **options) as writer:
        for batch in new.batches(payload=True):
            writer.write(Batch(batch.start, batch.ids, batch.vectors, batch.payload.select(schema.names)))
