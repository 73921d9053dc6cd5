"""What makes the networks fast on a CPU; they give the same without it."""
