"""Pixels: reading, resizing and preparing images for judges."""
