"""Tests of unpacked file systems."""
