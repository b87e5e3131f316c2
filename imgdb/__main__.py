"""``python -m imgdb``."""

from imgdb.cli.main import main

if __name__ == "__main__":
    main()
