"""The files that describe runs, studies, analyses and benchmarks, and comparisons of records.

``run`` is record.json, ``study`` study.json, ``analysis`` analysis.json, and ``bench`` a benchmark's file.
``layout`` names the files and says which are there, ``storage`` reads and writes the records, ``files``
writes text and JSON whole or not at all, and ``folders`` checks the folders that a user names. ``lock`` lets
one process at a time write to a folder; ``answers`` counts a run's predictions; ``weights`` hashes trained
weights; ``archive`` packs the runs of a study. ``differences`` lists the settings in which runs differ;
``base_model`` decides whether they have the same base model.

It imports no torch, so a report can be made on any machine.
"""
