"""python -m tinyfcn: the command line, where no `tinyfcn` is on the PATH."""

from tinyfcn.cli import main

main(prog_name="tinyfcn")
