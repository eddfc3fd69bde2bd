"""The tables of the documents, generated from committed records and from the code.

In a document the table NAME is between the lines `<!-- begin: NAME -->` and `<!-- end -->`.
Each module here defines the tables of one subject; `make documents` writes them all.
"""
