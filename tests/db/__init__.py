"""Tests of the database: schema, triggers, views and SQLite itself."""
