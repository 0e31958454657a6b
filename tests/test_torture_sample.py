"""A minute of ``make torture``: the same seeds every time, and no clock decides."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_sample_of_torture_finds_nothing(tmp_path):
    command = [sys.executable, "-m", "tests.torture", "--sample", "--keep", str(tmp_path / "torture")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mutations: " in done.stdout
