"""Labs: parts of the shipped source as exercises, and the grader that checks them. See learn/labs.md.

Each lab is a file: what is to be written, its hints, and its cases. The hole is cut from the source itself, between the
lines `# lab: begin NAME` and `# lab: end NAME`.
"""
