"""What is written to disk about runs and studies: the models, and reading and writing their files.

``run`` holds record.json, ``study`` study.json and ``analysis`` analysis.json; ``layout`` reads and writes
them.
No torch here, so that the report can read a record on any machine.
"""
