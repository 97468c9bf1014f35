"""The exercises: a folder each, with a solution whose hole is marked, and its texts. See tinyfcn/study/exercises.py."""
