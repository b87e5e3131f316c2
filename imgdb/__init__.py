"""imgdb: an OCI image store kept in SQLite, with its blobs on disk."""

__version__ = "0.1.0"
