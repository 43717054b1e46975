"""Text-to-image systems hosted by diffusers: one adapter, and a table of what sets their pipeline classes apart."""
