"""What the machine has, what is kept for whom, and what is used."""
