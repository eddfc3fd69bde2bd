"""Contract tests for the triggers, defenses, data sets and networks of plug-ins. The contract tests
of this package's own methods use the same checks."""
