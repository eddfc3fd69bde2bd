"""Triggers and poisoning. Each trigger is one file, registered by its YAML in conf/trigger."""
