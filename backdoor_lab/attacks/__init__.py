"""Triggers and the poisoning of training sets. Each trigger is one module, with a YAML file in
conf/trigger."""
