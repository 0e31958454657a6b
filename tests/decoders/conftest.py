"""Fixtures for the tests of decoders."""

import io
import zipfile

import pytest
import torch

from tests.decoders.support import Net, exported


@pytest.fixture(scope="module")
def parts():
    """The members of a good program."""
    buffer = io.BytesIO()
    torch.export.save(exported(Net(), ({0: torch.export.Dim("n")},)), buffer)
    with zipfile.ZipFile(buffer) as archive:
        root = archive.namelist()[0].partition("/")[0]
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}, root
