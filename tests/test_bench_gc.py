"""scripts/bench_gc measures what it says, in stores that are small enough to be made in a moment."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.tools.sample import ROOT


def test_it_measures(tmp_path):
    """Two rows, and an exit code that says whether the limit is kept."""
    words = ["--small", "5", "--large", "250", "--times", "2", "--dir", tmp_path, "--json"]
    argv = [sys.executable, ROOT / "scripts" / "bench_gc", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    body = json.loads(done.stdout)
    # Of each image three blobs, and one of each hundred; the imported ones are gone again.
    assert [(row["images"], row["blobs"]) for row in body["rows"]] == [(5, 16), (250, 753)]
    for row in body["rows"]:
        assert 0 < row["fastest_s"] <= row["median_s"] <= row["slowest_s"]
    assert body["limit"] == 3
    assert (done.returncode == 0) == (body["ratio"] <= 3), done.stderr
