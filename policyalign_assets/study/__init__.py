"""The study: what each part of the method earns, beside what a team would do instead.

`sweep.py` reads the file that lists the arms, `trials.py` runs one arm with one seed and keeps its
result in a file, `analysis.py` compares the arms, and `page.py` writes docs/study.md.
"""
