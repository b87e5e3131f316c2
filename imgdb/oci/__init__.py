"""Pure values and rules of the OCI specifications: no I/O, no SQL."""
