"""Python imports this at its start, in the processes that run.py starts and in theirs."""

from standin import bridge

bridge.watch()
