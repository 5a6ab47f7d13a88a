"""Other unlearning libraries beside ours, on one job."""
