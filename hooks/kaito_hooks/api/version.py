"""The version of this project: of this package, its images and the charts. ``make release`` writes it."""

VERSION = "0.1.0"
