"""Judges: frozen networks that read every image once, and the image preprocessing they need."""
