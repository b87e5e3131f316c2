"""The check walk, in steps: rows → files → content; then mend what was found."""
