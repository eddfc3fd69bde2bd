"""Triggers, and the code that poisons training sets with them. Each trigger is one module, with a
YAML file in conf/trigger."""
