"""Training-set filters. One file is one defense; its YAML in conf/defense registers it."""
