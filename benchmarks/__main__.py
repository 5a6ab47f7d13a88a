"""`python -m benchmarks`: measures the speed anew and writes every table of the docs."""

from benchmarks import figures, speed, tables

speed.main()
tables.main()
figures.main()
