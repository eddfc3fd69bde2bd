"""Triggers and poisoning. One file is one trigger; its YAML in conf/trigger registers it."""
