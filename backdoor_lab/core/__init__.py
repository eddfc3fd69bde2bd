"""Shared foundations: errors, value checks, random streams, file access and the stage store."""
