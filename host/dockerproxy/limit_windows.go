package dockerproxy

// isFileLimit is never so: handles are bounded by memory alone.
func isFileLimit(error) bool { return false }
