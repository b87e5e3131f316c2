"""Tests of imgdb; tests/tools holds what they borrow from other projects."""
