"""Model cards (TOML), one for each published checkpoint."""
