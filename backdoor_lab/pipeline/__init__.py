"""One cell: its configuration, its identity, its stages and the chain through them."""
