"""Generates the tables of the documents from committed records and from the code.

In a document, the table NAME is between the lines `<!-- begin: NAME -->` and `<!-- end -->`. Each
module of this package defines the tables of one subject; `make documents` writes them all.
"""
