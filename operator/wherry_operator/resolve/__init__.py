"""An object and what it refers to → a `protocol.Workload`, or an error that the user can read. Pure: nothing here does I/O."""
