"""Unpacking images: a plan, then a chain of snapshots."""
