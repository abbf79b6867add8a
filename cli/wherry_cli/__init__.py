"""`kubectl wherry`: what kubectl by itself can't do with a WasmWorkload."""
