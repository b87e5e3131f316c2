"""Tests of the tar and compression readers and writers."""
