"""The verb demo: fit, evaluate, convert, index, search and record on the bundled embeddings."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embridge.cli.session import Session, Verb, table, verb

if TYPE_CHECKING:
    from embridge.catalog import Catalog
    from embridge.maps import Map
    from embridge.records import Evaluation
    from embridge.records.rollout import RolloutStatus
    from embridge.stores import Collection

# Columns of the search results: the strategy, and its heading.
_COLUMNS = {"keep-old": "old", "translate-documents": "translated", "blend": "blended", "re-encode": "native"}
_EXAMPLES, _HITS = 6, 3
_STEP, _STAGES = 400, 3  # rows of a step of the rollout, and its stages


@dataclass(frozen=True)
class _Demo:
    """The inputs of every step: the output folder and the bundled collections."""

    session: Session
    folder: Path
    catalog: Catalog
    old: Collection
    new: Collection
    old_queries: Collection
    new_queries: Collection

    def say(self, text: str) -> None:
        if not self.session.json:
            click.echo(text)

    def path(self, name: str) -> str:
        return str(self.folder / name)


@click.command(cls=Verb)
@click.option("-o", "--output", default="embridge-demo", show_default=True, metavar="FOLDER", help="Where its files go.")
@verb(catalog=False)
def demo(session: Session, output: str) -> None:
    """Run all steps on real embeddings, in under a minute.

    3,000 WordNet glosses were encoded with MiniLM-L6; the team moves to MPNet and has re-encoded 1,000 of them. Fit a map,
    measure it on the other 2,000, convert the collection, index it, search it with MPNet queries, roll MPNet out step by step,
    and record everything. The folder holds map, collection, indexes, rollout and catalog; running the demo again replaces them.

    \b
    embridge demo
    embridge demo -o /tmp/embridge-demo --json
    """
    import embridge as eb

    started = time.perf_counter()
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    catalog = eb.Catalog(folder / "embridge.duckdb")
    catalog.check()
    names = ("minilm", "mpnet", "minilm.queries", "mpnet.queries")
    demo = _Demo(session, folder, catalog, *(eb.open(eb.sample_path(name)) for name in names))
    translation = _fit(demo)
    found = _evaluate(demo, translation)
    converted = _convert(demo, translation)
    examples = _search(demo, translation, converted)
    stages = _roll_out(demo)
    seconds = time.perf_counter() - started
    best = catalog.sql("SELECT source_space, target_space, method, overlap, recall, benchmark FROM best_translator")
    demo.say(f"\n5. Query the catalog: embridge catalog sql --catalog {catalog.path} 'FROM best_translator'")
    demo.say("   " + table(best).replace("\n", "\n   "))
    files = ", ".join(sorted(os.listdir(folder)))
    result = {"folder": output, "seconds": seconds, "evaluation": found.to_dict(), "examples": examples}
    result["rollout"] = [stage.to_dict() for stage in stages]
    session.emit(result, f"\nDone in {seconds:.0f} s; everything is in {output}/: {files}")


def _fit(demo: _Demo) -> Map:
    import embridge as eb

    demo.say("1. Fit a map from 1,000 glosses that were encoded by both models.")
    clock = time.perf_counter()
    shared = eb.match(demo.old, demo.new)
    with demo.session.status("fitting"):
        train = shared.sample(1000)
        translation = eb.fit(train, keep_affine=True)
    translation.save(demo.path("map.safetensors"), overwrite=True)
    drawn = replace(shared.record, anchors=len(train), held_out=len(shared) - len(train))
    run = eb.Run.of(
        "fit",
        inputs=[eb.Artifact.of_collection("source", demo.old), eb.Artifact.of_collection("target", demo.new)],
        outputs=[eb.Artifact.of_map("map", demo.path("map.safetensors"), translation)],
        result=[drawn, translation.record],
        parameters={"n": 1000},
        seconds=time.perf_counter() - clock,
        rows=len(train),
    )
    demo.catalog.record(run)
    demo.say(f"   {translation}\n")
    return translation


def _evaluate(demo: _Demo, translation: Map) -> Evaluation:
    import embridge as eb
    from embridge.tables.qrels import read_qrels

    demo.say("2. Measure it on the other 2,000, compared with keeping the index and with re-encoding everything.")
    clock = time.perf_counter()
    qrels = eb.sample_path("qrels")
    with demo.session.status("evaluating"):
        queries = eb.match(demo.old_queries, demo.new_queries)
        found = eb.evaluate(translation, eb.match(demo.old, demo.new), queries=queries, qrels=read_qrels(qrels))
    sides = {"source": demo.old, "target": demo.new, "source queries": demo.old_queries, "target queries": demo.new_queries}
    inputs = [eb.Artifact.of_map("map", demo.path("map.safetensors"), translation), eb.Artifact.of_file("qrels", qrels)]
    inputs += [eb.Artifact.of_collection(role, side) for role, side in sides.items()]
    seconds = time.perf_counter() - clock
    run = eb.Run.of("evaluate", inputs=inputs, result=found, parameters={"k": found.k}, seconds=seconds, rows=found.corpus)
    demo.catalog.record(run)
    demo.say("   " + str(found).replace("\n", "\n   ") + "\n")
    return found


def _convert(demo: _Demo, translation: Map) -> Collection:
    import embridge as eb

    demo.say("3. Convert the whole collection, index it, and search it with queries of the new model.")
    with demo.session.progress("converting") as progress:
        done = eb.convert(demo.old, translation, demo.path("old-in-new.parquet"), overwrite=True, progress=progress)
    converted = eb.open(demo.path("old-in-new.parquet"))
    inputs = [eb.Artifact.of_collection("source", demo.old)]
    inputs += [eb.Artifact.of_map("map", demo.path("map.safetensors"), translation)]
    outputs = [eb.Artifact.of_collection("output", converted)]
    demo.catalog.record(eb.Run.of("convert", inputs=inputs, outputs=outputs, result=done))
    return converted


def _search(demo: _Demo, translation: Map, converted: Collection) -> list[dict[str, Any]]:
    """Index and search; for a few queries the first hits of each strategy, best first."""
    import embridge as eb
    from embridge.tables.qrels import read_qrels

    old, translated, native = (
        _index(demo, collection, name)
        for collection, name in ((demo.old, "old.faiss"), (converted, "old-in-new.faiss"), (demo.new, "new.faiss"))
    )
    answers = {
        "keep-old": eb.search(old, demo.old_queries, _HITS),
        "translate-documents": eb.search(translated, demo.new_queries, _HITS),
        "blend": eb.search(old, demo.new_queries, _HITS, via=translation, old_queries=demo.old_queries),
        "re-encode": eb.search(native, demo.new_queries, _HITS),
    }
    judged, lemmas, words = read_qrels(eb.sample_path("qrels")), _lemmas(demo.old), _lemmas(demo.new_queries)
    hits = {name: dict(zip(ids.tolist(), found.ids.tolist(), strict=True)) for name, (ids, found) in answers.items()}
    # Evenly spread over the queries that the strategies answer differently: where all agree there is nothing to see.
    differing = [q for q in hits["keep-old"] if judged.get(q) and len({tuple(found[q]) for found in hits.values()}) > 1]
    examples = []
    for query in differing[:: max(len(differing) // _EXAMPLES, 1)][:_EXAMPLES]:
        rows = {name: [{"lemma": lemmas[i], "relevant": i in judged[query]} for i in found[query]] for name, found in hits.items()}
        examples.append({"query_id": query, "query": words[query], "hits": rows})
    demo.say(_text(examples))
    return examples


def _roll_out(demo: _Demo) -> list[RolloutStatus]:
    """Three stages of a rollout; the status of each."""
    import numpy as np

    import embridge as eb
    from embridge.rollout.steps import discard
    from embridge.tables.ids import read_ids
    from embridge.tables.qrels import read_qrels

    demo.say(f"\n4. Or roll the new model out: encode {_STEP} rows a step, and score every row by both of its vectors.")
    clock, path, listed = time.perf_counter(), demo.path("rollout"), demo.path("next.parquet")
    discard(Path(path))
    ids, vectors = demo.new.read()
    first = np.isin(np.arange(len(ids)), eb.sample_rows(demo.old, _STEP, queries=demo.old_queries))
    queries, qrels = eb.match(demo.old_queries, demo.new_queries), read_qrels(eb.sample_path("qrels"))
    with demo.session.status("rolling out"):
        native = eb.MemoryCollection(ids[first], vectors[first], demo.new.space)
        rollout = eb.Rollout.start(demo.old, native, path, queries=queries, qrels=qrels)
        found = [rollout.status()]
        while len(found) < _STAGES:
            rollout.next(_STEP, listed, overwrite=True)
            wanted = np.isin(ids, read_ids(listed))
            rollout.add(eb.MemoryCollection(ids[wanted], vectors[wanted], demo.new.space))
            found.append(rollout.status())
    run = eb.Run.of(
        "rollout",
        inputs=[eb.Artifact.of_collection("source", demo.old), eb.Artifact.of_collection("native", demo.new)],
        outputs=[eb.Artifact.of_collection("rollout", rollout.collection)],
        parameters={"stages": _STAGES},
        seconds=time.perf_counter() - clock,
        rows=found[-1].rows,
    )
    demo.catalog.record(run)
    demo.say("   " + table([_stage_row(status) for status in found]).replace("\n", "\n   "))
    return found


def _stage_row(status: RolloutStatus) -> dict[str, Any]:
    """The figures of a stage, on queries that nothing was chosen on."""
    return {
        "rows encoded": f"{status.native:,}",
        "recall@10: old model": status.keep_old.recall,
        "both vectors": status.now.recall,
        "forecast before": status.history[-1].forecast,
        "new vectors alone": status.new_space.recall,
    }


def _index(demo: _Demo, collection: Collection, name: str) -> Any:
    import embridge as eb

    clock = time.perf_counter()
    made = eb.build_index(collection, demo.path(name), "HNSW32", overwrite=True)
    run = eb.Run.of(
        "index",
        inputs=[eb.Artifact.of_collection("source", collection)],
        outputs=[eb.Artifact.of_index("index", made)],
        parameters={"factory": "HNSW32"},
        seconds=time.perf_counter() - clock,
        rows=len(made),
    )
    demo.catalog.record(run)
    return made


def _text(examples: list[dict[str, Any]]) -> str:
    width = 19
    lines = [f"   Best hits of {len(examples)} queries that the strategies answer differently; * marks the right gloss.", ""]
    lines.append("   " + " " * 18 + "".join(f"{heading:<{width}}" for heading in _COLUMNS.values()).rstrip())
    for example in examples:
        for rank in range(_HITS):
            head = example["query"][:17] if rank == 0 else ""
            cells = [example["hits"][name][rank : rank + 1] for name in _COLUMNS]
            shown = [f"{'*' if c[0]['relevant'] else ' '}{c[0]['lemma'][: width - 3]}" if c else "" for c in cells]
            lines.append(f"   {head:<17}" + "".join(f"{cell:<{width}}" for cell in shown).rstrip())
    return "\n".join(lines)


def _lemmas(collection: Collection) -> dict[Any, str]:
    """The first word of every row, by id."""
    first: dict[Any, str] = {}
    for batch in collection.batches(payload=True):
        lemmas = (text.split(", ")[0] for text in batch.payload.column("lemma").to_pylist())
        first |= dict(zip(batch.ids.to_pylist(), lemmas, strict=True))
    return first
