"""How a compiled module becomes a running process: the engine protocol and the executors that speak it."""
