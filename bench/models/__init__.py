"""Models: from a card to a loaded adapter, its files, its meter and its conformance."""
