"""Compares our methods with their papers and with their authors' code.

A method is a choice of ``trigger=`` or ``defense=``. Its YAML file in ``attacks/`` or ``defenses/``
has one row for each value or step that affects its results: our value, the paper's value, and the
value in the authors' code with a quotation of the line. README.md in this folder describes the
format. The status of a method must agree with its rows (rules.py), and our values are compared with
the configuration and the code (ours.py), so that outdated files are detected.
"""
