"""`translate_batch` in other engines: the snippets of the guide, where the engine is installed."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

import embridge as eb
from tests.support import ROOT

SNIPPETS = re.findall(r"^```py\n(.*?)^```$", (ROOT / "docs/guides/cluster.md").read_text(), re.MULTILINE | re.DOTALL)
ENGINES = {"pyspark": "by-spark", "dask": "by-dask-*.parquet", "ray.data": "by-ray-data"}
NEEDS = {"ray.data": "pandas"}  # of Ray alone, Ray Data cannot be imported


def test_the_guide_has_a_snippet_for_each_engine():
    assert [name for name, code in zip(ENGINES, SNIPPETS, strict=True) if name not in code] == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_snippet_translates_as_convert_does(engine, tmp_path):
    if not find_spec(engine.partition(".")[0]) or not find_spec(NEEDS.get(engine, "numpy")):
        pytest.skip(f"{engine} is not installed")
    old, new = eb.open(eb.sample_path("minilm")), eb.open(eb.sample_path("mpnet"))
    translation = eb.fit_maps(old, new, "ridge", parameters={"alpha": 0.3}).forward
    translation.save(tmp_path / "map.safetensors")
    eb.copy(old, tmp_path / "float32.parquet")
    eb.convert(eb.open(tmp_path / "float32.parquet"), translation, tmp_path / "here.parquet")
    code = next(code for code in SNIPPETS if engine in code)
    quiet = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env=quiet)
    assert done.returncode == 0, done.stderr
    found, here = (eb.open(tmp_path / name, space="mpnet").read() for name in (ENGINES[engine], "here.parquet"))
    assert sorted(found[0].tolist()) == sorted(here[0].tolist())
    np.testing.assert_allclose(found[1][np.argsort(found[0])], here[1][np.argsort(here[0])], atol=1e-6)
