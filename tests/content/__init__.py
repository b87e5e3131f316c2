"""Tests of blobs on disk: the conformance suite, holds, and what survives kills and failing calls."""
