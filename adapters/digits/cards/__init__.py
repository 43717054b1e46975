"""One card a digits generator, and one for the UCGM pair."""
