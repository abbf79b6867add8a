"""Files and folders that strangers may have put there."""
