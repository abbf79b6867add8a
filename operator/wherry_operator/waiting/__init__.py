"""A replica that waits for the lead, in a Pod: it imports next to nothing, looks at the Lease, and passes connections on."""
