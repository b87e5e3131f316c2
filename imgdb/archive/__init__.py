"""Tar formats: strict readers and exact writers; knows no store and no SQL."""
