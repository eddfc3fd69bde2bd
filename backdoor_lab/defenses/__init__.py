"""Defenses. Each defense is one module, with a YAML file in conf/defense."""
