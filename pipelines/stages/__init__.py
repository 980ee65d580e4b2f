"""One file for each stage that a build prints."""
