"""Bytes keyed by digest; knows no SQL."""
