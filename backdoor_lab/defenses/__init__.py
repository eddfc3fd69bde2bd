"""Defenses. Each one is a file, registered by its YAML in conf/defense."""
