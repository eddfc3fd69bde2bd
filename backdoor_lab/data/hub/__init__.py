"""Reads data sets in the file formats of the Hugging Face Hub, without a network."""
