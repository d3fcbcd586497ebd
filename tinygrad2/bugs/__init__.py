"""Thirty bugs to find: faults that are planted into a copy of the source, never into the source itself.

Each bug is a text in patches/: the file, the lines that are replaced, and what is told about it, in steps.
"""
