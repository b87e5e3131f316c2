"""Other projects' tools as test oracles: private daemons, one-shot commands, sample archives."""
