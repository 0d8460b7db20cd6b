"""What is written to disk about runs and studies, and what two records have in common.

``run`` is record.json, ``study`` study.json, ``analysis`` analysis.json; ``bench`` and ``pipeline`` are what
benchmarks write. ``layout`` names, reads and writes the files, a run's predictions and losses among them;
``archive`` packs the runs of a study. ``differences`` tells in which settings runs differ,
``base_model`` whether they began from one model.

No torch here, so that a report can be made on any machine.
"""
