"""The verb demo: the whole job on the bundled embeddings."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from embridge.cli.session import Session, Verb, collection_artifact, file_artifact, index_artifact, map_artifact, table, verb


@click.command(cls=Verb)
@click.option("-o", "--output", default="embridge-demo", show_default=True, metavar="FOLDER", help="Where its files go.")
@verb(catalog=False)
def demo(session: Session, output: str) -> None:
    """The whole job on real embeddings, in under a minute.

    3,000 WordNet glosses were encoded with MiniLM-L6; the team moves to MPNet and has re-encoded 1,000 of them. Fit a map,
    measure it on the other 2,000, convert the collection, index it, search it with MPNet queries, record everything. The folder
    keeps map, collection, index and catalog to play with; running the demo again replaces them.

    \b
    embridge demo
    embridge demo -o /tmp/embridge-demo --json
    """
    import embridge as eb
    from embridge.records import Artifact, Run
    from embridge.stores.tables import read_qrels

    started = time.perf_counter()
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    names = {name: str(folder / name) for name in ("map.safetensors", "old-in-new.parquet", "old-in-new.faiss", "embridge.duckdb")}
    catalog = eb.Catalog(names["embridge.duckdb"])
    catalog.check()
    old, new = eb.open(eb.sample_path("minilm")), eb.open(eb.sample_path("mpnet"))
    queries = [eb.open(eb.sample_path(f"{name}.queries")) for name in ("minilm", "mpnet")]
    sides = (collection_artifact("source", old), collection_artifact("target", new))

    def say(text: str) -> None:
        if not session.json:
            click.echo(text)

    say("1. Fit a map from 1,000 glosses that were encoded by both models.")
    clock = time.perf_counter()
    shared = eb.match(old, new)
    with session.status("fitting"):
        train = shared.sample(1000)
        translation = eb.fit(train, keep_affine=True)
    translation.save(names["map.safetensors"], overwrite=True)
    made = map_artifact("map", names["map.safetensors"], translation)
    drawn = replace(shared.record, anchors=len(train), held_out=len(shared) - len(train))
    catalog.record(Run("fit", {"n": 1000}, time.perf_counter() - clock, sides, (made,), 1000, "cpu", (drawn, translation.record)))
    say(f"   {translation}\n")

    say("2. Measure it on the 2,000 others, beside leaving the index alone and re-encoding everything.")
    clock = time.perf_counter()
    qrels = read_qrels(eb.sample_path("qrels"))
    with session.status("evaluating"):
        found = eb.evaluate(translation, shared, queries=eb.match(*queries), qrels=qrels)
    asked = [collection_artifact(role, side) for role, side in zip(("source queries", "target queries"), queries, strict=True)]
    inputs = (made, *sides, *asked, file_artifact("qrels", eb.sample_path("qrels")))
    catalog.record(Run("evaluate", {"k": 10}, time.perf_counter() - clock, inputs, rows=found.corpus, details=(found,)))
    say("   " + str(found).replace("\n", "\n   ") + "\n")

    say("3. Convert the whole collection, index it, and search it with queries of the new model.")
    with session.progress("converting") as progress:
        done = eb.convert(old, translation, names["old-in-new.parquet"], overwrite=True, progress=progress)
    converted = eb.open(names["old-in-new.parquet"])
    whole = collection_artifact("output", converted)
    catalog.record(Run("convert", {}, done.seconds, (sides[0], made), (whole,), done.rows, done.device, (done,)))
    clock = time.perf_counter()
    index = eb.build_index(converted, names["old-in-new.faiss"], "HNSW32", overwrite=True)
    whole = Artifact("source", whole.path, whole.fingerprint, whole.kind, whole.rows, whole.space)
    catalog.record(
        Run("index", {"factory": "HNSW32"}, time.perf_counter() - clock, (whole,), (index_artifact("index", index),), len(index))
    )
    examples = _examples(eb.search(index, queries[1], 3), old, queries[1])
    for query, lemmas in examples.items():
        say(f"   {query:<28} -> {', '.join(lemmas)}")

    seconds = time.perf_counter() - started
    best = catalog.sql("SELECT source_space, target_space, method, overlap, recall FROM best_translator")
    say(f"\n4. Ask the catalog: embridge catalog sql --catalog {os.path.join(output, 'embridge.duckdb')} 'FROM best_translator'")
    say("   " + table(best).replace("\n", "\n   "))
    say(f"\nDone in {seconds:.0f} s; everything is in {output}/: {', '.join(sorted(p.name for p in folder.iterdir()))}")
    if session.json:
        session.emit({"folder": output, "seconds": seconds, "evaluation": found.to_dict(), "examples": examples}, "")


def _examples(answer: tuple[Any, Any], documents: Any, queries: Any) -> dict[str, list[str]]:
    """First lemmas of six queries, evenly spread, and of what they found."""
    ids, hits = answer
    asked, found = _lemmas(queries), _lemmas(documents)
    step = max(1, len(ids) // 6)
    return {asked[ids[row]]: [found[i] for i in hits.row(row)[0]] for row in range(0, step * 6, step)}


def _lemmas(collection: Any) -> dict[str, str]:
    first: dict[str, str] = {}
    for batch in collection.batches(payload=True):
        lemmas = (text.split(", ")[0] for text in batch.payload.column("lemma").to_pylist())
        first |= dict(zip(batch.ids.to_pylist(), lemmas, strict=True))
    return first
