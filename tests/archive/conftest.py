"""Fixtures of the archive tests."""

from __future__ import annotations

import pytest

from imgdb.archive import codecs


@pytest.fixture(params=["isal", "zlib"])
def inflater(request, monkeypatch):
    """Both ways to read gzip: with isal, and where there is none."""
    if request.param == "isal" and not codecs.HAVE_ISAL:
        pytest.skip("isal is not installed")
    monkeypatch.setattr(codecs, "HAVE_ISAL", request.param == "isal")
    return request.param
