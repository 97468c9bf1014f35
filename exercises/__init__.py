"""The exercises: a folder each, with a solution whose hole is marked, and exercise.toml. See tinyfcn/study/exercises.py."""
