"""Recordings: replay of recorded upstream behaviour (`bench parity`)."""
