"""The package's version, the one place that says it."""

VERSION = "2.0.0"
