"""The sources that come with the package, a file each."""
