"""The export walk, in steps: resolve and lease → plan → write."""
