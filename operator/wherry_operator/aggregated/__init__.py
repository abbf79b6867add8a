"""The aggregated API `subresources.wherry.dev`: what of a WasmWorkload no CRD can serve, its log."""
