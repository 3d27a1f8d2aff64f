"""The sinks that come with the package, a file each."""
