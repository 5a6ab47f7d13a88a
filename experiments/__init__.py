"""What measures the paper, the methods and the speed: `python -m experiments`."""
