"""What is written to disk about a run and a comparison: the models, and reading and writing their files.

``run`` holds record.json, ``comparison`` holds comparison.json, ``layout`` reads and writes both.
No torch here, so that the report can read a record on any machine.
"""
