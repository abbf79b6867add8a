"""The runners as the operator sees them: who is there, and how to talk to each."""
