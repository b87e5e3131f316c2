"""The graph in SQL; functions take a connection or session and never commit."""
