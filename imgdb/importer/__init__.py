"""The import walk, in steps: intake → layout → graph → plan → put → rows."""
