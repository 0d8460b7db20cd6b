"""What is written to disk about runs and studies, and what two records have in common.

``run`` is record.json, ``study`` study.json, ``analysis`` analysis.json; ``bench`` is what benchmarks write.
``layout`` names, reads and writes the files; ``lock`` lets one process at a time write to a folder;
``answers`` counts a run's predictions; ``archive`` packs the runs of a study. ``differences`` tells in which
settings runs differ, ``base_model`` whether they began from one model.

No torch here, so that a report can be made on any machine.
"""
