"""What a runner knows of its workloads when it comes back (design §3.8)."""
