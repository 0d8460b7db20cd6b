"""Studies and comparisons: a plan becomes runs, and the runs become one record with their statistics.

``plan`` defines what is crossed, ``material`` reads the rows, and ``grid`` derives the jobs. ``schedule`` and
``conduct`` hand the jobs to a runner (``local`` or ``ray_cluster``), whose processes ``execute`` them;
``cost`` estimates what they take. ``cell`` and ``assemble`` make the record. ``compare`` plans a study of one
cell, and ``existing`` makes the same record from existing run directories.
"""
