"""Pictures of a sweep and of its cells, for paper and screen: `python -m backdoor_lab.figures`.

Every picture is a function from plain numpy arrays to a matplotlib Figure. matplotlib is imported
in this room alone, and nothing here imports torch.
"""
