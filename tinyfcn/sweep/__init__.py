"""Studies of many small trainings: a space of options, the study in a database, its workers, and its answer."""
