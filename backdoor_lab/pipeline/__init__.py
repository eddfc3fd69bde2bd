"""A cell: its configuration, its identity, and the stages that compute its result."""
