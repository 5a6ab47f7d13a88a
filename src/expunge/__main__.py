"""`python -m expunge`: the command, as launchers of several processes start it."""

from expunge.cli import main

main()
