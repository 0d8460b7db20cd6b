"""Studies and comparisons: a plan becomes runs, and runs become one record with what can be told from them.

``plan`` says what is crossed, ``material`` which rows there are, ``grid`` which jobs follow; ``schedule`` and
``conduct`` hand them to a runner (``local`` or ``ray_cluster``), in whose processes ``execute`` does them.
``cell`` and ``assemble`` make the record. ``compare`` plans a study of one cell; ``existing`` makes the same
record from run directories that are there already.
"""
