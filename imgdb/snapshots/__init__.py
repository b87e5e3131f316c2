"""Unpacked file systems: layers become directories, directories become mounts."""
